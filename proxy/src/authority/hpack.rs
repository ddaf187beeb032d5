//! As much of HPACK (RFC 7541) as it takes to find the literal `:authority` of a header block, and to write another one.

use std::ops::Range;

/// Place of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;

/// HPACK's Huffman code, which is canonical: codes of one length follow each other in the order given here, and the first
/// code of a length follows from the codes before it. Longer codes are for bytes that are no printable ASCII.
const HUFFMAN: [(u32, &[u8]); 10] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
];

/// A literal value.
#[derive(Debug, PartialEq, Eq)]
pub struct Literal {
    /// Where it lies in the block, its length in front of it included.
    pub at: Range<usize>,
    /// What it says.
    pub value: Vec<u8>,
}

/// The literal `:authority` of a header block; none if there is none, or something before it cannot be read.
pub fn authority(block: &[u8]) -> Option<Literal> {
    let mut at = 0;
    while at < block.len() {
        let bits = match block[at] {
            // A whole header from the tables.
            0x80.. => {
                at = integer(block, at, 7)?.1;
                continue;
            }
            // The size of the table changes.
            0x20..0x40 => {
                at = integer(block, at, 5)?.1;
                continue;
            }
            0x40..0x80 => 6,
            0x00..0x20 => 4,
        };
        let (name, after) = integer(block, at, bits)?;
        at = after;
        if name == 0 {
            at = text(block, at)?.end;
        }
        let value = text(block, at)?;
        if name == AUTHORITY {
            return Some(Literal { at: at..value.end, value: value.read(block)? });
        }
        at = value.end;
    }
    None
}

/// Appends a text without Huffman coding.
pub fn put_text(block: &mut Vec<u8>, text: &[u8]) {
    let mut length = text.len();
    if length < 0x7f {
        block.push(length as u8);
    } else {
        block.push(0x7f);
        length -= 0x7f;
        while length >= 0x80 {
            block.push(length as u8 | 0x80);
            length >>= 7;
        }
        block.push(length as u8);
    }
    block.extend_from_slice(text);
}

/// An integer in the last `bits` of a byte and maybe those after it, and where it ends.
fn integer(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let mask = (1 << bits) - 1;
    let first = usize::from(*block.get(at)?) & mask;
    if first < mask {
        return Some((first, at + 1));
    }
    let mut value = mask;
    // Three more bytes hold two million: no header block is longer.
    for (i, byte) in block.get(at + 1..)?.iter().take(3).enumerate() {
        value += usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, at + 2 + i));
        }
    }
    None
}

/// Where a text lies.
struct Text {
    huffman: bool,
    start: usize,
    end: usize,
}

impl Text {
    fn read(&self, block: &[u8]) -> Option<Vec<u8>> {
        let bytes = &block[self.start..self.end];
        if self.huffman { decode(bytes) } else { Some(bytes.to_vec()) }
    }
}

fn text(block: &[u8], at: usize) -> Option<Text> {
    let huffman = block.get(at)? & 0x80 != 0;
    let (length, start) = integer(block, at, 7)?;
    let end = start.checked_add(length).filter(|end| *end <= block.len())?;
    Some(Text { huffman, start, end })
}

/// Decodes Huffman code of printable ASCII.
fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| u32::from(byte >> bit & 1)));
    let mut decoded = Vec::new();
    let (mut code, mut length) = (0, 0);
    for bit in bits {
        (code, length) = (code << 1 | bit, length + 1);
        if let Some(byte) = symbol(code, length) {
            decoded.push(byte);
            (code, length) = (0, 0);
        } else if length > 15 {
            return None;
        }
    }
    // The rest of the last byte is ones.
    (length < 8 && code == (1 << length) - 1).then_some(decoded)
}

/// The byte with this code, if a code of this length has one.
fn symbol(code: u32, length: u32) -> Option<u8> {
    let (mut first, mut before) = (0, 0);
    for (bits, symbols) in HUFFMAN {
        first <<= bits - before;
        if bits == length {
            return code.checked_sub(first).and_then(|at| symbols.get(at as usize)).copied();
        }
        (first, before) = (first + symbols.len() as u32, bits);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 7541, C.4 and C.6, and others made with its table.
    #[test]
    fn decodes_huffman() {
        let cases: [(&[u8], &[u8]); 4] = [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff], b"www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], b"no-cache"),
            (&[0x64, 0x02], b"302"),
            (&[], b""),
        ];
        for (coded, plain) in cases {
            assert_eq!(decode(coded).as_deref(), Some(plain));
        }
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff]), None, "the code of the end is no text");
        assert_eq!(decode(&[0x00]), None, "padding is ones");
    }

    #[test]
    fn reads_integers_of_every_length() {
        assert_eq!(integer(&[0x0a], 0, 5), Some((10, 1)));
        assert_eq!(integer(&[0x1f, 0x9a, 0x0a], 0, 5), Some((1337, 3)));
        assert_eq!(integer(&[0x1f, 0x9a], 0, 5), None);
        assert_eq!(integer(&[0x1f, 0xff, 0xff, 0xff, 0x01], 0, 5), None);
        for length in [0, 1, 0x7e, 0x7f, 0x80, 300, 20_000] {
            let mut block = Vec::new();
            put_text(&mut block, &vec![b'x'; length]);
            let read = text(&block, 0).unwrap();
            assert_eq!((read.huffman, read.end - read.start, read.end), (false, length, block.len()));
        }
    }

    #[test]
    fn finds_the_literal_among_other_headers() {
        // :method POST, :scheme http, a table size change, a literal :path, then :authority "a/b".
        let mut block = vec![0x83, 0x86, 0x3f, 0xe1, 0x1f, 0x44];
        put_text(&mut block, b"/p");
        block.push(0x41);
        let start = block.len();
        put_text(&mut block, b"a/b");
        let end = block.len();
        block.extend([0x40, 1, b'n', 1, b'v']);
        assert_eq!(authority(&block), Some(Literal { at: start..end, value: b"a/b".to_vec() }));
        assert_eq!(authority(&block[..start]), None);
        assert_eq!(authority(&block[..end - 1]), None);
        assert_eq!(authority(&[]), None);
    }
}
