//! Rates fade and are steady where the load is; the middle of a load is where half of it lies, or there is none.

use braid_proto::key::{lease_key, lease_of, user_key};

use super::*;

#[test]
fn a_rate_follows_the_load_and_fades_to_nothing() {
    let mut rates = Rates::default();
    for _ in 0..30 {
        rates.fold(500, 1 << 20, 1_000);
    }
    assert!((490..=500).contains(&rates.ops()), "{rates:?}");
    assert!((1_000_000..=1 << 20).contains(&rates.bytes()), "{rates:?}");
    // However long nobody folded.
    let mut late = rates;
    late.fold(0, 0, 60_000);
    assert_eq!((late.ops(), late.bytes()), (0, 32), "{late:?}");
    rates.fold(0, 0, 4_000);
    assert!((245..=250).contains(&rates.ops()), "half of it is forgotten: {rates:?}");
}

#[test]
fn a_steady_load_is_reported_once_however_it_trembles() {
    let mut told = 0;
    let mut words = Vec::new();
    for turn in 0..1_000_u64 {
        // Between 90 % and 110 % of a load that lies on a border of the rounding.
        let now = 1_280 * (90 + turn * 7 % 21) / 100;
        let next = steady(told, now, 4);
        if next != told {
            words.push(next);
        }
        told = next;
    }
    assert_eq!(words.len(), 1, "{words:?}");
    assert!((1_024..=1_536).contains(&words[0]), "{words:?}");
}

#[test]
fn what_is_reported_of_a_rate_is_never_far_off() {
    for told in [0, 4, 6, 100, 4_096, 1 << 40] {
        for now in (0..200).chain([1_000, 3_000, 5_000, 10_000, 1 << 40, 1 << 41, u64::MAX / 8]) {
            let said = steady(told, now, 4);
            match said {
                0 => assert!(now < 4, "{told} {now}"),
                said => assert!(now >= said - said.div_ceil(2) && now <= said + said, "{told} {now} {said}"),
            }
        }
    }
    assert_eq!(steady(6, 0, 4), 0, "what is over is said to be over");
}

#[test]
fn a_size_is_reported_again_when_it_is_off_by_a_few_per_cent() {
    assert_eq!(about(0, 10, 1_000), 10, "the first word is exact");
    assert_eq!(about(100_000, 102_000, 10), 100_000);
    assert_eq!(about(100_000, 104_000, 10), 104_000);
    assert_eq!(about(100_000, 95_000, 10), 95_000);
    assert_eq!(about(1_000, 1_500, 1_000), 1_000, "small ones may be off by more");
}

fn all() -> KeyRange {
    KeyRange { start: Bytes::new(), end: Bytes::new() }
}

fn sample(keys: impl IntoIterator<Item = u64>) -> Sample {
    let mut sample = Sample::default();
    keys.into_iter().for_each(|key| sample.touch(&user_key(format!("k{key:05}").as_bytes()), 50_000));
    sample
}

fn number(key: &Bytes) -> u64 {
    std::str::from_utf8(&key[2..]).expect("text").parse().expect("a number")
}

#[test]
fn an_even_load_is_cut_in_the_middle_and_a_lopsided_one_where_half_of_it_lies() {
    let even = sample((0..SAMPLE_KEYS as u64).map(|turn| turn * 37 % 1_000));
    let cut = number(&even.middle(&all(), 50_000).expect("a key"));
    assert!((450..550).contains(&cut), "{cut}");
    // Three in four touches concern the first tenth.
    let lopsided = sample((0..128).map(|turn| if turn % 4 == 0 { turn * 7 % 1_000 } else { turn * 37 % 100 }));
    let cut = number(&lopsided.middle(&all(), 50_000).expect("a key"));
    assert!((40..110).contains(&cut), "{cut}");
}

#[test]
fn one_key_cannot_be_shared_but_may_have_a_half_to_itself() {
    assert_eq!(sample((0..128).map(|_| 5)).middle(&all(), 50_000), Err(Unsplit::OneKey));
    assert_eq!(sample((0..128).map(|turn| turn % 10 / 9)).middle(&all(), 50_000), Err(Unsplit::OneKey));
    let half = sample((0..128).map(|turn| if turn % 2 == 0 { 500 } else { turn * 37 % 1_000 }));
    let cut = half.middle(&all(), 50_000).expect("a key");
    assert!((300..=700).contains(&number(&cut)));
}

#[test]
fn a_load_that_moves_on_is_not_cut() {
    assert_eq!(sample(0..128).middle(&all(), 50_000), Err(Unsplit::Moving));
    assert_eq!(sample((0..128).rev()).middle(&all(), 50_000), Err(Unsplit::Moving));
    // Writes that move on beside reads of everything.
    let mixed = sample((0..128).map(|turn| if turn % 2 == 0 { turn * 37 % 1_000 } else { 10_000 + turn }));
    assert!(mixed.middle(&all(), 50_000).is_ok());
}

#[test]
fn only_what_was_touched_lately_and_inside_counts() {
    let even = sample((0..128).map(|turn| turn * 37 % 1_000));
    assert_eq!(even.middle(&all(), 50_000 + SAMPLE_MS + 1), Err(Unsplit::Idle));
    assert_eq!(sample((0..10).map(|turn| turn * 37 % 1_000)).middle(&all(), 50_000), Err(Unsplit::Idle));
    let part = KeyRange { start: user_key(b"k00500"), end: user_key(b"k01000") };
    let cut = even.middle(&part, 50_000).expect("a key");
    assert!((650..850).contains(&number(&cut)), "{cut:?}");
    // Never the region's first key: nothing would remain of the left half.
    let first = sample((0..128).map(|turn| if turn % 2 == 0 { 500 } else { turn * 37 % 1_000 }));
    let cut = first.middle(&part, 50_000).expect("a key");
    assert!(cut > part.start);
    // Between the records of leases, but not at a key of a kind that is not known here.
    let mut leases = Sample::default();
    (0..128_i64).for_each(|turn| leases.touch(&lease_key(turn * 37 % 1_000), 50_000));
    let cut = lease_of(&leases.middle(&all(), 50_000).expect("a key")).expect("a lease");
    assert!((400..600).contains(&cut), "{cut}");
    let mut others = Sample::default();
    (0..128_u8).for_each(|turn| others.touch(&[0x08, turn.wrapping_mul(37)], 50_000));
    assert_eq!(others.middle(&all(), 50_000), Err(Unsplit::OneKey));
}

#[test]
fn a_sample_is_bounded_and_keeps_the_newest() {
    let sample = sample(0..10_000);
    assert_eq!(sample.touches.len(), SAMPLE_KEYS);
    assert_eq!(number(&sample.touches[0].1), 10_000 - SAMPLE_KEYS as u64);
    let mut rates = Rates::default();
    assert_eq!(rates.stride(), 1);
    rates.fold(12_800, 0, 60_000);
    rates.fold(1_280_000, 0, 1_000_000);
    assert!((99..=101).contains(&rates.stride()), "{}", rates.stride());
}
