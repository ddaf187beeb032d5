//! Deletes (2.2, 2.3, 2.7), and the bound on what one request may change.

use super::script::{State, check, check_in};
use crate::eval::Context;

const ABC: &str = "put a 1; put b 2; put c 3";

#[test]
fn a_delete_takes_one_revision_for_all_its_keys() {
    check(ABC, "del b", "write [-b over 3]: del own 1");
    check(ABC, "del a..c", "write [-a over 2, -b over 3]: del own 2");
    check(ABC, "del b..", "write [-b over 3, -c over 4]: del own 2");
    check(ABC, "del ..", "write [-a over 2, -b over 3, -c over 4]: del own 3");
    check("put a 1; put a 2; del a; put a 3", "del a", "write [-a over 5]: del own 1");
}

#[test]
fn a_delete_of_nothing_is_a_read() {
    check(ABC, "del x", "read: del before 0");
    check(ABC, "del c..a", "read: del before 0");
    check(ABC, "del b..b", "read: del before 0");
    check(ABC, "del aa..b", "read: del before 0");
    check("put a 1; del a", "del a", "read: del before 0");
    check("", "del ..", "read: del before 0");
}

#[test]
fn prev_kvs_come_in_key_order() {
    check(
        "put b 2; put a 1 lease=9",
        "del .. prev",
        "write [-a over 3, -b over 2]: del own 2 a=1[c3 m3 v1 l9] b=2[c2 m2 v1]",
    );
    check(ABC, "del b prev", "write [-b over 3]: del own 1 b=2[c3 m3 v1]");
    check(ABC, "del x prev", "read: del before 0");
}

#[test]
fn what_changes_too_much_is_refused_before_it_takes_a_number() {
    let state = State::parse("put a 1; put b 2; put c 3; put d 4");
    let keys = Context { heard: 5, effect_changes_max: 3, ..Context::default() };
    let refused = "too large";
    check_in(&state, "del a..d", &keys, "write [-a over 2, -b over 3, -c over 4]: del own 3");
    check_in(&state, "del ..", &keys, refused);
    check_in(
        &state,
        "txn { then del a..c ; put x 1 }",
        &keys,
        "write [-a over 2, -b over 3, x=1 cown v1]: txn own then {del own 2; put own}",
    );
    check_in(&state, "txn { then del a..c ; put x 1 ; put y 1 }", &keys, refused);
    check_in(&state, "txn { then put x 1 ; del a..d }", &keys, refused);

    let bytes = Context { heard: 5, effect_bytes_max: 60, ..Context::default() };
    check_in(&state, "put x 0123456789", &bytes, "write [x=0123456789 cown v1]: put own");
    check_in(&state, "put x 01234567890", &bytes, refused);
    check_in(&state, "del a..c", &bytes, refused);
    check_in(&state, "del a..b", &bytes, "write [-a over 2]: del own 1");
}

#[test]
fn a_delete_that_is_too_large_stops_reading() {
    use std::cell::Cell;
    use std::ops::ControlFlow;

    use braid_proto::key::KeyRange;

    use super::script::request;
    use crate::eval::{Evaluated, evaluate};
    use crate::overlay::Overlay;
    use crate::record::Record;
    use crate::view::{BaseView, Damaged, View, Visit};

    struct Endless(Cell<u64>);
    impl BaseView for Endless {
        fn get(&self, _: &[u8]) -> Result<Option<Record>, Damaged> {
            Ok(None)
        }
        fn scan(&self, _: &KeyRange, visit: Visit<'_>) -> Result<(), Damaged> {
            let record = Record { create_revision: 2, mod_revision: 2, version: 1, ..Record::default() };
            while visit(&format!(" k{:020}", self.0.get()).into(), &record) == ControlFlow::Continue(()) {
                self.0.set(self.0.get() + 1);
            }
            Ok(())
        }
        fn count(&self, _: &KeyRange, _: &[&[u8]]) -> Result<u64, Damaged> {
            Ok(u64::MAX)
        }
        fn scan_at(&self, range: &KeyRange, _: i64, visit: Visit<'_>) -> Result<(), Damaged> {
            self.scan(range, visit)
        }
        fn count_at(&self, range: &KeyRange, _: i64) -> Result<u64, Damaged> {
            self.count(range, &[])
        }
    }

    let base = Endless(Cell::new(0));
    let context = Context { effect_changes_max: 1_000, ..Context::default() };
    let outcome = evaluate(&request("del .."), &View { overlay: &Overlay::default(), base: &base }, &context);
    assert_eq!(outcome, Ok(Evaluated::TooLarge));
    assert_eq!(base.0.get(), 1_000);
}
