//! Which placement member to ask next. Pure.

/// The members' addresses and the one believed to lead.
#[derive(Debug)]
pub(crate) struct Members {
    endpoints: Vec<String>,
    /// Whom to ask next: one of `endpoints`, or an address that a member named.
    target: String,
    /// Position in `endpoints` of the last one chosen without a hint.
    position: usize,
}

impl Members {
    /// # Panics
    /// Without endpoints.
    pub(crate) fn new(endpoints: Vec<String>) -> Self {
        let target = endpoints.first().expect("at least one placement endpoint").clone();
        Members { endpoints, target, position: 0 }
    }

    /// As the operator gave them.
    pub(crate) fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Whom to ask next.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// Somebody knows that `leader` leads.
    pub(crate) fn learn(&mut self, leader: &str) {
        leader.clone_into(&mut self.target);
    }

    /// `member` says that it does not lead but `leader` does; empty: it does not know.
    pub(crate) fn refused(&mut self, member: &str, leader: &str) {
        if leader.is_empty() || leader == member {
            return self.failed(member);
        }
        if self.target == member {
            self.learn(leader);
        }
    }

    /// `member` is of no use now. Changes nothing if somebody else has moved on already.
    pub(crate) fn failed(&mut self, member: &str) {
        if self.target == member {
            self.position = (self.position + 1) % self.endpoints.len();
            self.target.clone_from(&self.endpoints[self.position]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Members {
        Members::new(vec!["a:1".into(), "b:1".into(), "c:1".into()])
    }

    #[test]
    fn failures_go_round() {
        let mut members = members();
        let mut asked = Vec::new();
        for _ in 0..4 {
            let target = members.target().to_owned();
            members.failed(&target);
            asked.push(target);
        }
        assert_eq!(asked, ["a:1", "b:1", "c:1", "a:1"]);
    }

    #[test]
    fn a_hint_is_followed_and_a_useless_one_is_not() {
        let mut members = members();
        members.refused("a:1", "c:1");
        assert_eq!(members.target(), "c:1");
        members.refused("c:1", "c:1");
        assert_eq!(members.target(), "b:1", "a member that names itself and refuses does not know");
        members.refused("b:1", "");
        assert_eq!(members.target(), "c:1");
    }

    #[test]
    fn news_about_a_member_that_is_not_asked_any_more_changes_nothing() {
        let mut members = members();
        members.refused("a:1", "c:1");
        members.failed("a:1");
        members.refused("a:1", "b:1");
        assert_eq!(members.target(), "c:1");
    }
}
