//! `braid admin rebalance`: how far the cluster is from balance, and following it until it is there.
//!
//! Nothing is begun here: schedulers balance by themselves. It ends
//!
//! - well, when the cluster has been balanced for several looks: for a moment it also seems so between two operators;
//! - badly, when nothing has been under way or changed for [`STUCK`] and placement says what it waits for;
//! - badly, when patience has ended.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use braid_proto::pb::{BalanceRequest, BalanceResponse};
use serde::Serialize;

use crate::admin::answer::{Answer, print};
use crate::admin::connection::Connection;
use crate::admin::follow::{Look, follow};
use crate::admin::table::{Table, count, size};
use crate::args::types::Output;

/// Looks in a row that must find balance.
const BALANCED_LOOKS: u32 = 3;
/// How long nothing may move while something should. Longer than a region rests after an operator on it has failed once.
const STUCK: Duration = Duration::from_secs(60);

/// How far it is from balance.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Balance {
    /// Nothing is under way, and no scheduler wants anything.
    balanced: bool,
    bytes_to_move: u64,
    leaders_to_move: u32,
    replicas_to_repair: u32,
    operators: u32,
    /// Since placement's leader leads.
    operators_done: u64,
    bytes_moved: u64,
    /// What the rest waits for, operators under way too.
    waits_for: Vec<String>,
    /// What is not as it should be and cannot be helped now.
    stays: Vec<String>,
}

impl From<BalanceResponse> for Balance {
    fn from(answer: BalanceResponse) -> Self {
        Self {
            balanced: answer.balanced,
            bytes_to_move: answer.bytes_to_move,
            leaders_to_move: answer.leaders_to_move,
            replicas_to_repair: answer.replicas_to_repair,
            operators: answer.operators,
            operators_done: answer.operators_done,
            bytes_moved: answer.bytes_moved,
            waits_for: answer.waits_for,
            stays: answer.stays,
        }
    }
}

/// Says how far it is now.
pub async fn status(connection: &mut Connection, output: Output) -> Result<()> {
    let balance = ask(connection).await?;
    print(output, &balance)?;
    balance.verdict()
}

/// Follows it for `timeout` seconds.
pub async fn run(connection: &mut Connection, output: Output, timeout: u64) -> Result<()> {
    let (mut path, mut last) = (Path::default(), Balance::default());
    let patience = Duration::from_secs(timeout);
    let end = follow(connection, output, patience, "balancing", async |connection: &mut Connection| {
        last = ask(connection).await?;
        Ok(path.look(&last, Instant::now()))
    });
    let end = end.await;
    print(output, &last)?;
    match end? {
        End::Balanced => Ok(()),
        End::Stuck => bail!("nothing has moved for {} s: {}", STUCK.as_secs(), last.reasons()),
    }
}

async fn ask(connection: &mut Connection) -> Result<Balance> {
    Ok(connection.ask(BalanceRequest {}).await?.into())
}

#[derive(Debug, PartialEq)]
enum End {
    Balanced,
    Stuck,
}

/// What has been seen so far.
#[derive(Default)]
struct Path {
    balanced_looks: u32,
    /// The most that there was to do of each kind.
    most: [u64; 3],
    /// Since when nothing has changed, and what was seen then.
    still: Option<(Instant, Balance)>,
}

impl Path {
    fn look(&mut self, seen: &Balance, now: Instant) -> Look<End> {
        self.balanced_looks = if seen.balanced { self.balanced_looks + 1 } else { 0 };
        if self.balanced_looks >= BALANCED_LOOKS {
            return Look::Ended(End::Balanced);
        }
        let moves = seen.operators > 0 || seen.waits_for.is_empty();
        let since = match &self.still {
            Some((since, before)) if !moves && before.is_like(seen) => *since,
            _ => {
                self.still = Some((now, seen.clone()));
                now
            }
        };
        if now.duration_since(since) >= STUCK {
            return Look::Ended(End::Stuck);
        }
        Look::Going { share: self.share(seen), said: seen.line() }
    }

    /// How much of all that there was to do is done: the mean over bytes, leaders and repairs.
    fn share(&mut self, seen: &Balance) -> f64 {
        let to_do = [seen.bytes_to_move, seen.leaders_to_move.into(), seen.replicas_to_repair.into()];
        for (most, now) in self.most.iter_mut().zip(to_do) {
            *most = now.max(*most);
        }
        let shares = self.most.iter().zip(to_do).filter(|(most, _)| **most > 0);
        let shares: Vec<f64> = shares.map(|(most, now)| 1.0 - now as f64 / *most as f64).collect();
        if shares.is_empty() { 0.0 } else { shares.iter().sum::<f64>() / shares.len() as f64 }
    }
}

impl Balance {
    /// Whether nothing has been done between the two. What is waited for may be worded differently from look to look.
    fn is_like(&self, other: &Self) -> bool {
        let Self { bytes_to_move, leaders_to_move, replicas_to_repair, operators_done, bytes_moved, .. } = self;
        (bytes_to_move, leaders_to_move, replicas_to_repair, operators_done, bytes_moved)
            == (
                &other.bytes_to_move,
                &other.leaders_to_move,
                &other.replicas_to_repair,
                &other.operators_done,
                &other.bytes_moved,
            )
    }

    fn line(&self) -> String {
        let waits = match &self.waits_for[..] {
            [] => String::new(),
            all if self.operators == 0 => format!("; waits: {}", all.join("; ")),
            [first, ..] => format!("; waits: {first}"),
        };
        format!("{}{waits}", self.to_do())
    }

    fn to_do(&self) -> String {
        format!(
            "{}, {} to move, {} to repair; {} under way, {} done",
            size(self.bytes_to_move),
            count(self.leaders_to_move.into(), "leader"),
            count(self.replicas_to_repair.into(), "replica"),
            count(self.operators.into(), "operator"),
            self.operators_done
        )
    }

    fn reasons(&self) -> String {
        match self.waits_for.is_empty() {
            true => format!("{}; `braid admin why` says more", self.to_do()),
            false => self.waits_for.join("; "),
        }
    }

    /// Fails unless it is balanced.
    fn verdict(&self) -> Result<()> {
        match self.balanced {
            true => Ok(()),
            false => bail!("not balanced: {}", self.reasons()),
        }
    }
}

impl Answer for Balance {
    fn text(&self) -> String {
        let mut sheet = Table::sheet();
        sheet.say("balanced", if self.balanced { "yes" } else { "no" });
        sheet.say(
            "to move",
            format_args!("{}, {}", size(self.bytes_to_move), count(self.leaders_to_move.into(), "leader")),
        );
        sheet.say("to repair", count(self.replicas_to_repair.into(), "replica"));
        sheet.say("under way", count(self.operators.into(), "operator"));
        let done = count(self.operators_done, "operator");
        sheet.say("done so far", format_args!("{done}, {} moved", size(self.bytes_moved)));
        sheet.say_lines("waits for", self.waits_for.iter().cloned(), "nothing");
        if !self.stays.is_empty() {
            sheet.say_lines("stays so", self.stays.iter().cloned(), "nothing");
        }
        sheet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_go(bytes_to_move: u64, leaders_to_move: u32, operators: u32) -> Balance {
        Balance { bytes_to_move, leaders_to_move, operators, ..Balance::default() }
    }

    fn ended(look: Look<End>) -> Option<End> {
        match look {
            Look::Ended(end) => Some(end),
            Look::Going { .. } => None,
        }
    }

    #[test]
    fn balance_must_last() {
        let (mut path, now) = (Path::default(), Instant::now());
        let balanced = Balance { balanced: true, ..Balance::default() };
        for seen in [&balanced, &balanced, &to_go(1, 0, 1), &balanced, &balanced] {
            assert_eq!(ended(path.look(seen, now)), None);
        }
        assert_eq!(ended(path.look(&balanced, now)), Some(End::Balanced));
    }

    #[test]
    fn the_share_grows_with_what_is_done() {
        let mut path = Path::default();
        let shares = [to_go(0, 0, 1), to_go(100, 4, 1), to_go(50, 4, 1), to_go(0, 0, 1)].map(|seen| path.share(&seen));
        assert_eq!(shares, [0.0, 0.0, 0.25, 1.0]);
    }

    #[test]
    fn standing_still_with_a_reason_ends_it() {
        let (mut path, begun) = (Path::default(), Instant::now());
        let waits = Balance { waits_for: vec!["drain is paused".to_owned()], ..to_go(9, 0, 0) };
        let moving = Balance { operators: 1, ..waits.clone() };
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(ended(path.look(&waits, at(0))), None);
        assert_eq!(ended(path.look(&moving, at(50))), None, "that begins anew");
        assert_eq!(ended(path.look(&waits, at(51))), None);
        assert_eq!(ended(path.look(&waits, at(109))), None);
        assert_eq!(ended(path.look(&to_go(9, 0, 0), at(120))), None, "without a reason it may begin any time");
        assert_eq!(ended(path.look(&waits, at(121))), None);
        assert_eq!(ended(path.look(&to_go(8, 0, 0), at(170))), None, "something was moved");
        assert_eq!(ended(path.look(&waits, at(171))), None, "to and fro is movement, too");
        assert_eq!(ended(path.look(&waits, at(231))), Some(End::Stuck));
    }

    #[test]
    fn what_is_missing_is_said() {
        let waits = Balance { waits_for: vec!["a".to_owned(), "b".to_owned()], ..to_go(1536, 1, 0) };
        assert_eq!(waits.verdict().unwrap_err().to_string(), "not balanced: a; b");
        assert_eq!(
            waits.line(),
            "1.5 KiB, 1 leader to move, 0 replicas to repair; 0 operators under way, 0 done; waits: a; b"
        );
        let moving = to_go(0, 2, 1).verdict().unwrap_err().to_string();
        assert!(moving.contains("2 leaders to move") && moving.contains("braid admin why"), "{moving}");
        assert!(waits.text().ends_with("waits for    a\n             b\n"), "{}", waits.text());
        let stays = Balance { balanced: true, stays: vec!["labels: s4 has no space".to_owned()], ..Balance::default() };
        assert!(stays.verdict().is_ok());
        assert!(
            stays.text().ends_with("waits for    nothing\nstays so     labels: s4 has no space\n"),
            "{}",
            stays.text()
        );
        let begun = Balance { waits_for: vec!["o7 on r5".to_owned(), "o8 on r6".to_owned()], ..to_go(0, 0, 2) };
        assert!(begun.line().ends_with("2 operators under way, 0 done; waits: o7 on r5"), "{}", begun.line());
        let json = serde_json::to_value(&waits).unwrap();
        assert_eq!((json["bytes_to_move"].as_u64(), json["waits_for"][1].as_str()), (Some(1536), Some("b")));
    }
}
