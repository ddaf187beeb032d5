//! Values by key range, found by any key inside: an interval tree.
//!
//! A treap: a binary tree in order of (start, end) whose shape is that of random insertions, whatever the order of the real
//! ones. Each node knows the last end below it, so a search leaves out what ends before its key: it costs by the depth and
//! by what it finds, not by how many ranges there are.

use std::cmp::Ordering;

use braid_proto::key::KeyRange;
use bytes::Bytes;

/// See the module's text.
#[derive(Debug)]
pub struct Ranges<T> {
    root: Tree<T>,
    seed: u64,
}

type Tree<T> = Option<Box<Node<T>>>;

#[derive(Debug)]
struct Node<T> {
    range: KeyRange,
    value: T,
    /// Parents have higher ones.
    priority: u64,
    /// The last end in this part of the tree; empty: none.
    last_end: Bytes,
    left: Tree<T>,
    right: Tree<T>,
}

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self { root: None, seed: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl<T> Ranges<T> {
    /// The value of exactly this range.
    pub fn get_mut(&mut self, range: &KeyRange) -> Option<&mut T> {
        let mut tree = &mut self.root;
        while let Some(node) = tree {
            tree = match order(range, &node.range) {
                Ordering::Less => &mut node.left,
                Ordering::Greater => &mut node.right,
                Ordering::Equal => return Some(&mut node.value),
            };
        }
        None
    }

    /// Sets the value of exactly this range.
    pub fn insert(&mut self, range: KeyRange, value: T) {
        let (before, _, behind) = split(self.root.take(), &range);
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        let last_end = range.end.clone();
        let node = Node { range, value, priority: self.seed, last_end, left: None, right: None };
        self.root = merge(merge(before, Some(Box::new(node))), behind);
    }

    /// Removes the value of exactly this range.
    pub fn remove(&mut self, range: &KeyRange) -> Option<T> {
        let (before, found, behind) = split(self.root.take(), range);
        self.root = merge(before, behind);
        found.map(|node| node.value)
    }

    /// Shows the values of all ranges that hold `key`, in order of the ranges.
    pub fn at<'t>(&'t self, key: &[u8], visit: &mut impl FnMut(&'t T)) {
        at(&self.root, key, visit);
    }

    /// All values, in order of their ranges.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        let mut path = Vec::new();
        descend(&mut path, &self.root);
        std::iter::from_fn(move || {
            let node = path.pop()?;
            descend(&mut path, &node.right);
            Some(&node.value)
        })
    }
}

impl<T> Node<T> {
    /// Puts other trees below it.
    fn adopt(mut self: Box<Self>, left: Tree<T>, right: Tree<T>) -> Box<Self> {
        let below = [&left, &right].into_iter().flatten().map(|node| &node.last_end);
        let last = below.fold(&self.range.end, |last, end| if is_later(end, last) { end } else { last });
        self.last_end = last.clone();
        (self.left, self.right) = (left, right);
        self
    }
}

/// By start, then by end; no end comes last.
fn order(a: &KeyRange, b: &KeyRange) -> Ordering {
    let ends = || a.end.is_empty().cmp(&b.end.is_empty()).then_with(|| a.end.cmp(&b.end));
    a.start.cmp(&b.start).then_with(ends)
}

/// Whether `end` is behind `other`; an empty end is behind all others.
fn is_later(end: &[u8], other: &[u8]) -> bool {
    !other.is_empty() && (end.is_empty() || end > other)
}

fn is_beyond(end: &[u8], key: &[u8]) -> bool {
    end.is_empty() || end > key
}

/// What lies before `range`, the node of `range` alone, and what lies behind.
fn split<T>(tree: Tree<T>, range: &KeyRange) -> (Tree<T>, Tree<T>, Tree<T>) {
    let Some(mut node) = tree else { return (None, None, None) };
    let (left, right) = (node.left.take(), node.right.take());
    match order(range, &node.range) {
        Ordering::Equal => (left, Some(node.adopt(None, None)), right),
        Ordering::Less => {
            let (before, found, behind) = split(left, range);
            (before, found, Some(node.adopt(behind, right)))
        }
        Ordering::Greater => {
            let (before, found, behind) = split(right, range);
            (Some(node.adopt(left, before)), found, behind)
        }
    }
}

/// One tree of two; all of `a` lies before all of `b`.
fn merge<T>(a: Tree<T>, b: Tree<T>) -> Tree<T> {
    match (a, b) {
        (None, tree) | (tree, None) => tree,
        (Some(mut a), Some(b)) if a.priority >= b.priority => {
            let (left, right) = (a.left.take(), a.right.take());
            Some(a.adopt(left, merge(right, Some(b))))
        }
        (Some(a), Some(mut b)) => {
            let (left, right) = (b.left.take(), b.right.take());
            Some(b.adopt(merge(Some(a), left), right))
        }
    }
}

fn at<'t, T>(tree: &'t Tree<T>, key: &[u8], visit: &mut impl FnMut(&'t T)) {
    let Some(node) = tree else { return };
    if !is_beyond(&node.last_end, key) {
        return;
    }
    at(&node.left, key, visit);
    if node.range.start > key {
        return;
    }
    if is_beyond(&node.range.end, key) {
        visit(&node.value);
    }
    at(&node.right, key, visit);
}

fn descend<'t, T>(path: &mut Vec<&'t Node<T>>, mut tree: &'t Tree<T>) {
    while let Some(node) = tree {
        path.push(node);
        tree = &node.left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn range(start: u8, end: u8) -> KeyRange {
        let end = if end == u8::MAX { Bytes::new() } else { Bytes::from(vec![end]) };
        KeyRange { start: Bytes::from(vec![start]), end }
    }

    fn found(ranges: &Ranges<u32>, key: &[u8]) -> Vec<u32> {
        let mut found = Vec::new();
        ranges.at(key, &mut |value| found.push(*value));
        found
    }

    fn depth<T>(tree: &Tree<T>) -> usize {
        tree.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    /// Insertions and removals of ranges that overlap, nest, touch and have no end, against a list.
    #[test]
    fn a_key_finds_the_ranges_that_hold_it() {
        let (mut ranges, mut list) = (Ranges::default(), BTreeMap::new());
        let mut state = 7_u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for turn in 0..4_000 {
            let start = random(40) as u8;
            let end = if random(8) == 0 { u8::MAX } else { start + 1 + random(30) as u8 };
            let name = (start, end);
            if random(3) == 0 {
                assert_eq!(ranges.remove(&range(start, end)), list.remove(&name));
            } else {
                assert_eq!(ranges.get_mut(&range(start, end)).copied(), list.get(&name).copied());
                ranges.insert(range(start, end), turn);
                list.insert(name, turn);
            }
            let key = random(80) as u8;
            let holds = |&(start, end): &(u8, u8)| start <= key && (end == u8::MAX || key < end);
            let expected: Vec<u32> = list.iter().filter(|(name, _)| holds(name)).map(|(_, value)| *value).collect();
            assert_eq!(found(&ranges, &[key]), expected, "turn {turn}, key {key}");
        }
        assert_eq!(ranges.values().copied().collect::<Vec<_>>(), list.values().copied().collect::<Vec<_>>());
    }

    #[test]
    fn ranges_that_come_in_order_make_no_list() {
        let mut ranges = Ranges::default();
        for number in 0..10_000_u32 {
            let (start, end) = (number.to_be_bytes().to_vec(), (number + 1).to_be_bytes().to_vec());
            ranges.insert(KeyRange { start: start.into(), end: end.into() }, number);
        }
        assert!(depth(&ranges.root) < 60, "{}", depth(&ranges.root));
        assert_eq!(found(&ranges, &7_777_u32.to_be_bytes()), [7_777]);
    }
}
