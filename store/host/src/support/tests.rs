//! Scripts and a property test of support: the holder always lets go before the granter does.

use std::sync::atomic::AtomicBool;

use super::*;

const MS: u64 = 1_000_000;

fn ms(at: u64) -> Now {
    Now(at * MS)
}

fn config() -> SupportConfig {
    SupportConfig {
        period: Duration::from_millis(800),
        margin: Duration::from_millis(20),
        interval: Duration::from_millis(250),
    }
}

fn table(host: u64, incarnation: u64) -> SupportTable {
    SupportTable::new(host, incarnation, config())
}

/// The request that is due from `table` to `to` at `now`.
fn request(table: &SupportTable, to: u64, now: Now) -> pb::Support {
    let mut due = table.tick([to].into_iter(), now);
    assert_eq!(due.len(), 1, "one request is due at {now:?}");
    due.pop().unwrap().1
}

#[test]
fn support_counts_from_the_sending_of_the_request() {
    let (a, b) = (table(1, 1), table(2, 1));
    let ask = request(&a, 2, ms(1000));
    let grant = b.on_frame(1, 1, &ask, ms(1100)).unwrap();
    assert_eq!(a.on_frame(2, 1, &grant, ms(1200)), None);
    assert_eq!(a.cell(2).held(), Held { incarnation: 1, since: ms(1200), until: ms(1780) });
    assert!(b.promised(1, 1, ms(1899)));
    assert!(!b.promised(1, 1, ms(1900)));
}

#[test]
fn a_delayed_grant_does_not_reach_beyond_the_period() {
    let (a, b) = (table(1, 1), table(2, 1));
    let ask = request(&a, 2, ms(1000));
    let grant = b.on_frame(1, 1, &ask, ms(1001)).unwrap();
    a.on_frame(2, 1, &grant, ms(1779));
    assert_eq!(a.cell(2).held().until, ms(1780));

    let ask = request(&a, 2, ms(2000));
    let grant = b.on_frame(1, 1, &ask, ms(2001)).unwrap();
    a.on_frame(2, 1, &grant, ms(2780));
    assert_eq!(a.cell(2).held().until, ms(1780), "a grant that is over when it arrives changes nothing");
}

#[test]
fn requests_go_out_once_an_interval_and_never_to_oneself() {
    let a = table(1, 1);
    let due = |at| -> Vec<(u64, u64)> {
        a.tick([1, 2, 3].into_iter(), ms(at)).into_iter().map(|(to, s)| (to, s.request_seq)).collect()
    };
    assert_eq!(due(0), [(2, 1), (3, 1)]);
    assert_eq!(due(249), []);
    assert_eq!(due(250), [(2, 2), (3, 2)]);
    assert_eq!(a.tick([4].into_iter(), ms(251)).len(), 1, "each host has its own pace");
}

#[test]
fn a_gap_starts_a_new_stretch_and_an_old_confirmation_does_not_count_any_more() {
    let (a, b) = (table(1, 1), table(2, 1));
    let round = |at| {
        let ask = request(&a, 2, ms(at));
        let grant = b.on_frame(1, 1, &ask, ms(at + 1)).unwrap();
        a.on_frame(2, 1, &grant, ms(at + 2));
    };
    round(1000);
    round(1250);
    let confirmed = ms(1300);
    assert_eq!(a.cell(2).held(), Held { incarnation: 1, since: ms(1002), until: ms(2030) });
    assert!(a.cell(2).held().covers(confirmed, ms(2029)));
    assert!(!a.cell(2).held().covers(confirmed, ms(2030)));
    // The holder sleeps; b's promise (until 2051) ends, b may vote for somebody else; then support is renewed.
    assert!(!b.promised(1, 1, ms(2100)));
    round(2500);
    assert_eq!(a.cell(2).held(), Held { incarnation: 1, since: ms(2502), until: ms(3280) });
    assert!(!a.cell(2).held().covers(confirmed, ms(2600)), "b may have voted between 2051 and 2501");
    assert!(a.cell(2).held().covers(ms(2502), ms(2600)));
}

#[test]
fn a_restarted_granter_voids_what_was_held_from_its_old_life() {
    let (a, b) = (table(1, 1), table(2, 1));
    let ask = request(&a, 2, ms(1000));
    let grant = b.on_frame(1, 1, &ask, ms(1001)).unwrap();
    a.on_frame(2, 1, &grant, ms(1002));
    assert!(a.cell(2).held().covers(ms(1002), ms(1100)));

    // Any frame of the new life is enough, also one that says nothing about support.
    a.on_frame(2, 2, &pb::Support::default(), ms(1100));
    assert_eq!(a.cell(2).held(), Held { incarnation: 2, since: Now(0), until: Now(0) });
    assert_eq!(a.heard_incarnation(2), 2);

    // Frames of the old life that were still on their way are ignored, whatever they hold.
    let ask = request(&a, 2, ms(1300));
    let late = b.on_frame(1, 1, &ask, ms(1301)).unwrap();
    a.on_frame(2, 1, &late, ms(1302));
    assert_eq!(a.cell(2).held().until, Now(0));
    assert_eq!(a.on_frame(2, 1, &pb::Support { request_seq: 9, ..Default::default() }, ms(1303)), None);

    // The request reached both lives; the new one's answer counts.
    let grant = table(2, 2).on_frame(1, 1, &ask, ms(1310)).unwrap();
    a.on_frame(2, 2, &grant, ms(1311));
    assert_eq!(a.cell(2).held(), Held { incarnation: 2, since: ms(1311), until: ms(2080) });
}

#[test]
fn a_restarted_holder_voids_the_promise_and_ignores_grants_for_its_old_life() {
    let b = table(2, 1);
    let old = table(1, 1);
    let ask = request(&old, 2, ms(1000));
    let grant_for_old = b.on_frame(1, 1, &ask, ms(1001)).unwrap();
    assert!(b.promised(1, 1, ms(1100)));

    let new = table(1, 2);
    let ask = request(&new, 2, ms(1100));
    assert_eq!(ask.request_seq, 1, "sequences start again, so only the incarnation tells the lives apart");
    new.on_frame(2, 1, &grant_for_old, ms(1101));
    assert_eq!(new.cell(2).held().until, Now(0));

    let grant = b.on_frame(1, 2, &ask, ms(1102)).unwrap();
    assert!(!b.promised(1, 1, ms(1103)), "the old life is gone and leads nothing");
    assert!(b.promised(1, 2, ms(1103)));
    new.on_frame(2, 1, &grant, ms(1104));
    assert_eq!(new.cell(2).held().until, ms(1880));
}

#[test]
fn duplicates_and_reordering_give_nothing_twice_and_take_nothing_away() {
    let (a, b) = (table(1, 1), table(2, 1));
    let first = request(&a, 2, ms(1000));
    let second = request(&a, 2, ms(1250));
    // The second request arrives first, the first one twice and late.
    let grant_second = b.on_frame(1, 1, &second, ms(1260)).unwrap();
    let grant_first = b.on_frame(1, 1, &first, ms(1270)).unwrap();
    b.on_frame(1, 1, &first, ms(1240));
    assert!(b.promised(1, 1, ms(2069)), "an older clock reading does not shorten the promise");
    a.on_frame(2, 1, &grant_second, ms(1280));
    let held = a.cell(2).held();
    assert_eq!(held.until, ms(2030));
    a.on_frame(2, 1, &grant_first, ms(1290));
    a.on_frame(2, 1, &grant_second, ms(1300));
    a.on_frame(
        2,
        1,
        &pb::Support { grant_seq: 77, grant_incarnation: 1, grant_ms: 800, ..Default::default() },
        ms(1310),
    );
    assert_eq!(a.cell(2).held(), held);
}

#[test]
fn a_frame_may_carry_a_request_and_a_grant() {
    let (a, b) = (table(1, 1), table(2, 1));
    let from_a = request(&a, 2, ms(1000));
    let from_b = request(&b, 1, ms(1000));
    let grant = b.on_frame(1, 1, &from_a, ms(1010)).unwrap();
    let both = pb::Support { request_seq: from_b.request_seq, ..grant };
    let answer = a.on_frame(2, 1, &both, ms(1020)).unwrap();
    assert_eq!(a.cell(2).held().until, ms(1780));
    assert!(a.promised(2, 1, ms(1819)));
    b.on_frame(1, 1, &answer, ms(1030));
    assert_eq!(b.cell(1).held().until, ms(1780));
}

#[test]
fn a_shorter_promise_of_the_granter_is_believed_and_a_longer_one_is_not_used() {
    for (granter_ms, expect) in [(400, 1380), (5000, 1780)] {
        let a = table(1, 1);
        let b = SupportTable::new(2, 1, SupportConfig { period: Duration::from_millis(granter_ms), ..config() });
        let ask = request(&a, 2, ms(1000));
        let grant = b.on_frame(1, 1, &ask, ms(1001)).unwrap();
        a.on_frame(2, 1, &grant, ms(1002));
        assert_eq!(a.cell(2).held().until, ms(expect));
    }
}

#[test]
fn unanswered_requests_are_bounded() {
    let a = table(1, 1);
    for at in 0..1000 {
        a.tick([2].into_iter(), ms(at * 100));
        assert!(a.host(2).pair.lock().outstanding.len() <= 4);
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A machine's clock: offset and a rate of up to one per cent off.
struct Clock {
    offset: u64,
    rate_ppm: u64,
}

impl Clock {
    fn draw(random: &mut Random) -> Clock {
        Clock { offset: random.below(1 << 50), rate_ppm: 990_000 + random.below(20_001) }
    }

    fn read(&self, real: u64) -> Now {
        Now(self.offset + (real as u128 * self.rate_ppm as u128 / 1_000_000) as u64)
    }
}

/// Random delays, losses, duplicates, clock offsets and rates, and restarts of both sides. At every step, in real time:
/// whoever holds support is promised it, and between `since` and now the promise never lapsed.
#[test]
fn the_holder_never_holds_what_the_granter_does_not_promise() {
    let mut renewed = 0;
    for seed in 1..=300 {
        renewed += run(seed);
    }
    assert!(renewed > 10_000, "the runs hold support most of the time: {renewed}");
}

/// Returns how many steps saw support held. Real time runs in steps of 5 ms.
fn run(seed: u64) -> u64 {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let clocks = [Clock::draw(&mut random), Clock::draw(&mut random)];
    let mut lives = [1, 1];
    let mut tables = [table(0, 1), table(1, 1)];
    let mut wire: Vec<(u64, usize, u64, pb::Support)> = Vec::new();
    // Last real moment at which the granter did not promise support to the holder's present life.
    let mut unpromised = [0u64; 2];
    let mut steps_held = 0;
    let delay_max = [20, 300, 1500][random.below(3) as usize];
    for step in 0..1500u64 {
        let real = step * 5 * MS;
        let now = |host: usize| clocks[host].read(real);
        for host in 0..2 {
            for (to, ask) in tables[host].tick([1 - host as u64].into_iter(), now(host)) {
                post(&mut wire, &mut random, real, delay_max, to as usize, lives[host], ask);
            }
        }
        let (due, later) = wire.into_iter().partition(|message| message.0 <= real);
        wire = later;
        let due: Vec<_> = due;
        for (_, to, life, support) in due {
            if let Some(reply) = tables[to].on_frame(1 - to as u64, life, &support, now(to)) {
                post(&mut wire, &mut random, real, delay_max, 1 - to, lives[to], reply);
            }
        }
        for holder in 0..2 {
            let granter = 1 - holder;
            if !tables[granter].promised(holder as u64, lives[holder], now(granter)) {
                unpromised[holder] = real;
            }
            let held = tables[holder].cell(granter as u64).held();
            // A restarted granter keeps its word by casting no vote for a period, which this model leaves out: only
            // support of its present life is compared.
            if now(holder) < held.until && held.incarnation == lives[granter] {
                steps_held += 1;
                assert!(unpromised[holder] < real, "seed {seed} at {real}: held without a promise");
                let gap = clocks[holder].read(unpromised[holder]);
                assert!(gap < held.since, "seed {seed} at {real}: the stretch {held:?} hides the gap at {gap:?}");
            }
        }
        if random.below(400) == 0 {
            let host = random.below(2) as usize;
            lives[host] += 1;
            tables[host] = table(host as u64, lives[host]);
        }
    }
    steps_held
}

fn post(
    wire: &mut Vec<(u64, usize, u64, pb::Support)>,
    random: &mut Random,
    real: u64,
    delay_max: u64,
    to: usize,
    life: u64,
    support: pb::Support,
) {
    for _ in 0..[1, 1, 1, 2, 0][random.below(5) as usize] {
        wire.push((real + random.below(delay_max) * MS, to, life, support));
    }
}

#[test]
fn readers_never_see_two_stretches_mixed() {
    let cell = SupportCell::default();
    let stop = AtomicBool::new(false);
    let seen = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let held = cell.held();
                    assert_eq!((held.since.0, held.until.0), (held.incarnation * 3, held.incarnation * 7));
                    seen.fetch_max(held.incarnation, Ordering::Relaxed);
                }
            });
        }
        let mut life = 0;
        while life < 200_000 || seen.load(Ordering::Relaxed) < 100_000 {
            life += 1;
            cell.publish(Held { incarnation: life, since: Now(life * 3), until: Now(life * 7) });
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(seen.load(Ordering::Relaxed) >= 100_000);
}

#[test]
fn the_clock_goes_forward() {
    let before = Now::monotonic();
    let after = Now::monotonic();
    assert!(before <= after && before > Now(0));
    assert!(after.since(before) < Duration::from_secs(60));
}
