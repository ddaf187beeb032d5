//! Whether a member takes part in placement's group, and as whom.
//!
//! A peer that has lost its folder has forgotten its votes and its log. Under its old id it could help a second majority to
//! decide what a first one has decided already, so it never speaks under that id again. An empty folder does not say whether it
//! is the member's first. So a member without the group in its folder asks all others before it does anything:
//!
//! | The others say | The member |
//! |---|---|
//! | all are there, and none has the group | begins it; each of them makes the same one |
//! | one has begun it in the company of this very folder | begins it too |
//! | one has the group, but not in this folder's company | asks the leader for a new peer in the place of its old one |
//! | some do not answer, and none has the group | waits |
//!
//! A member that is told that the cluster exists (`--initial-cluster-state existing`) does not begin it by itself.
//!
//! 1. Folders are told apart by tokens, drawn when they are made. Who begins the group writes down first in whose company, and
//!    before it says anything that the folder has been used: one that has lost its peer is another folder, with another token.
//! 2. Until it is decided no raft message reaches the host, and afterwards only those for the new peer ([`Gate`]): a message
//!    would make the old peer anew.
//! 3. The new peer is a learner, then a voter, by changes of the group that the old peer has no part in (`join`).

use std::sync::Arc;
use std::time::Duration;

use braid_host::Host;
use braid_proto::id::RegionId;
use braid_proto::pb::{JoinRequest, JoinResponse, MemberFolder, MemberResponse, Region};
use futures::future::join_all;

use crate::leader::Shared;
use crate::placement::MemberConfig;

mod ask;
mod folder;
mod gate;
pub mod join;

pub use ask::{GrpcOthers, Others, Says};
pub use folder::OwnFolder;
pub use gate::Gate;

/// Between two looks at what the others say.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two requests to take part anew.
const JOIN_PAUSE: Duration = Duration::from_millis(200);
/// Between two lines of the log about what a member waits for.
const REPEAT: Duration = Duration::from_secs(10);

/// What a member without the group does next.
#[derive(Debug, PartialEq)]
enum Next {
    /// Makes the group, having written down in whose company.
    Begin(Vec<MemberFolder>),
    /// Asks for a new peer.
    Join,
    /// Asks again. These members did not answer, and why.
    Wait(Vec<(u64, String)>),
}

/// What follows from the answers of all `others` for a member with the folder `me`. `new`: it may be that none has the group.
fn judge(me: &MemberFolder, others: &[(u64, Says)], new: bool) -> Next {
    let answers: Vec<&MemberResponse> = others.iter().filter_map(|(_, says)| says.as_ref().ok()).collect();
    let folder = |answer: &MemberResponse| MemberFolder { member_id: answer.member_id, token: answer.token };
    if let Some(beginner) = answers.iter().find(|answer| answer.company.contains(me)) {
        let rest = beginner.company.iter().filter(|folder| *folder != me).copied();
        return Next::Begin(rest.chain([folder(beginner)]).collect());
    }
    if answers.iter().any(|answer| answer.peer_id != 0) {
        return Next::Join;
    }
    if new && answers.len() == others.len() {
        return Next::Begin(answers.into_iter().map(folder).collect());
    }
    let silent = |(member, says): &(u64, Says)| Some((*member, says.as_ref().err()?.clone()));
    Next::Wait(others.iter().filter_map(silent).collect())
}

/// Makes the member take part, however long that takes. For a member that has no vote in the group by its folder. `new`: the
/// group may be begun.
pub async fn take_part(shared: Arc<Shared>, host: Arc<Host>, gate: Arc<Gate>, group: Region, new: bool) {
    let mut said = Said::default();
    while host.handle(group.region_id()).is_none() {
        match judge(&shared.folder.own(), &ask_all(&shared).await, new) {
            Next::Begin(company) => match begin(&shared, &host, company, &group).await {
                Ok(()) => {
                    gate.open();
                    tracing::info!("this member begins placement's group together with the others");
                    return go_first(&shared, &host, &group).await;
                }
                Err(why) => said.say(format!("placement's group cannot be begun: {why}")),
            },
            Next::Join => break,
            Next::Wait(silent) if silent.is_empty() => said.say(
                "no other member of --initial-cluster has begun the cluster, which --initial-cluster-state says exists"
                    .to_owned(),
            ),
            Next::Wait(silent) => said.say(format!(
                "the cluster begins when all members of --initial-cluster are up; a member with an empty folder waits for \
                 all of them, or for one that has begun it; {}",
                named(&shared, &silent)
            )),
        }
        tokio::time::sleep(PAUSE).await;
    }
    join_anew(&shared, &host, &gate, group.region_id(), said).await;
}

async fn ask_all(shared: &Shared) -> Vec<(u64, Says)> {
    let ask = |member| async move { (member, shared.ask(member).await) };
    join_all(others(shared).map(|member| ask(member.id))).await
}

fn others(shared: &Shared) -> impl Iterator<Item = &MemberConfig> {
    shared.members.iter().filter(|member| member.id != shared.member)
}

fn named(shared: &Shared, silent: &[(u64, String)]) -> String {
    let named = silent.iter().filter_map(|(id, why)| {
        let member = others(shared).find(|member| member.id == *id)?;
        Some(format!("{} ({}): {why}", member.name, member.peer_addr))
    });
    named.collect::<Vec<_>>().join("; ")
}

async fn begin(
    shared: &Arc<Shared>,
    host: &Arc<Host>,
    company: Vec<MemberFolder>,
    group: &Region,
) -> Result<(), String> {
    let (shared, host, group) = (Arc::clone(shared), Arc::clone(host), group.clone());
    let begun = tokio::task::spawn_blocking(move || {
        shared.folder.keep(company).map_err(|error| error.to_string())?;
        // CRASH: the company is durable, the group is not. Safe: the member asks again.
        host.create_regions(vec![group])?;
        // CRASH: the group is durable, and nobody has heard of the peer. Safe: the next start says that it is used.
        shared.folder.use_it().map_err(|error| error.to_string())
    });
    begun.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// The first peer of a new group campaigns when the others are there, or everybody would wait for an election timeout: what it
/// said when it was made they did not hear yet.
async fn go_first(shared: &Shared, host: &Host, group: &Region) {
    if group.peers.first().is_none_or(|peer| peer.store_id != shared.member) {
        return;
    }
    let Some(handle) = host.handle(group.region_id()) else { return };
    while handle.leader().is_none() {
        let begun = |(_, says): &(u64, Says)| says.as_ref().is_ok_and(|says| says.peer_id != 0);
        if ask_all(shared).await.iter().all(begun) {
            return handle.campaign();
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks whoever leads for a new peer, until that votes.
async fn join_anew(shared: &Shared, host: &Host, gate: &Gate, group: RegionId, mut said: Said) {
    let own = || host.handle(group).map_or(0, |handle| handle.peer().id);
    let mut peer_id = own();
    tracing::warn!("placement's group has begun without this folder: the member takes part anew, under a new peer id");
    // Nobody vouches for this folder, used or not, so that it need not say so before the peer is there.
    loop {
        gate.admit_only(peer_id);
        let request = JoinRequest { cluster_id: shared.cluster_id.0, member_id: shared.member, peer_id };
        match ask_leader(shared, request).await {
            Some(answer) if answer.joined && own() == peer_id => break,
            Some(answer) if answer.peer_id != 0 => peer_id = answer.peer_id,
            Some(answer) if !answer.waits.is_empty() => said.say(format!("taking part anew waits: {}", answer.waits)),
            Some(_) => {}
            None => said.say("taking part anew waits for a leader of placement's group".to_owned()),
        }
        tokio::time::sleep(JOIN_PAUSE).await;
    }
    gate.open();
    tracing::info!(peer = peer_id, "this member takes part in placement's group anew");
}

async fn ask_leader(shared: &Shared, request: JoinRequest) -> Option<JoinResponse> {
    for member in others(shared) {
        let answer = shared.others.join(member, request).await;
        if answer.as_ref().is_some_and(|answer| answer.header.as_ref().is_some_and(|header| !header.refused)) {
            return answer;
        }
    }
    None
}

/// Says what a member waits for: what is new at once, the same again after a while.
#[derive(Default)]
struct Said(Option<(String, tokio::time::Instant)>);

impl Said {
    fn say(&mut self, what: String) {
        let now = tokio::time::Instant::now();
        if self.0.as_ref().is_none_or(|(last, at)| *last != what || now >= *at + REPEAT) {
            tracing::info!("{what}");
            self.0 = Some((what, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(member_id: u64, token: u64) -> MemberFolder {
        MemberFolder { member_id, token }
    }

    fn silent(member_id: u64) -> (u64, Says) {
        (member_id, Err("no answer".to_owned()))
    }

    fn empty(member_id: u64) -> (u64, Says) {
        (member_id, Ok(MemberResponse { member_id, token: 10 * member_id, ..Default::default() }))
    }

    fn begun(member_id: u64, peer_id: u64, company: &[MemberFolder]) -> (u64, Says) {
        let company = company.to_vec();
        (member_id, Ok(MemberResponse { member_id, token: 10 * member_id, peer_id, company }))
    }

    #[test]
    fn the_group_begins_when_all_are_there_with_empty_folders() {
        let me = folder(1, 10);
        assert_eq!(judge(&me, &[empty(2), empty(3)], true), Next::Begin(vec![folder(2, 20), folder(3, 30)]));
        assert_eq!(judge(&me, &[empty(2), silent(3)], true), Next::Wait(vec![(3, "no answer".to_owned())]));
        assert!(matches!(judge(&me, &[silent(2), silent(3)], true), Next::Wait(both) if both.len() == 2));
        assert_eq!(judge(&me, &[empty(2), empty(3)], false), Next::Wait(vec![]), "it is said to exist");
    }

    #[test]
    fn who_was_there_when_it_began_begins_it_too() {
        let company = [folder(1, 10), folder(3, 30)];
        let all = Next::Begin(vec![folder(3, 30), folder(2, 20)]);
        assert_eq!(judge(&folder(1, 10), &[begun(2, 2, &company), silent(3)], false), all);
        // It has written down its company and not made the group yet.
        assert_eq!(judge(&folder(1, 10), &[begun(2, 0, &company), empty(3)], true), all);
    }

    #[test]
    fn another_folder_of_a_member_is_nobody_that_the_group_knows() {
        let company = [folder(1, 10), folder(3, 30)];
        assert_eq!(judge(&folder(1, 11), &[begun(2, 2, &company), silent(3)], true), Next::Join);
        // One that has begun before there were tokens, or has taken part anew itself.
        assert_eq!(judge(&folder(1, 10), &[begun(2, 2, &[]), empty(3)], false), Next::Join);
        let others = [begun(2, 0, &company), empty(3)];
        assert_eq!(judge(&folder(1, 11), &others, true), Next::Begin(vec![folder(2, 20), folder(3, 30)]));
    }
}
