//! Who belongs to the cluster: the members that `--initial-cluster` names, and the ids that follow from them.
//!
//! As in etcd, ids are hashes of what the operator wrote: every member computes the same cluster id and member ids
//! without asking anybody, and members with different flags do not take part in each other's raft group.

use braid_proto::id::ClusterId;
use thiserror::Error;

use crate::args::groups::MemberArgs;
use crate::args::types::Url;
use crate::hash::stable;

/// braid's heartbeat and election times in milliseconds; the host's lease rules rest on them.
const HEARTBEAT_MS: u64 = braid_host::config::TICK.as_millis() as u64 * braid_host::config::HEARTBEAT_TICKS as u64;
const ELECTION_MS: u64 = braid_host::config::TICK.as_millis() as u64 * braid_host::config::ELECTION_TICKS as u64;

/// One member of placement's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Hash of token, name and URL.
    pub id: u64,
    /// Its name in `--initial-cluster`.
    pub name: String,
    /// Where the others reach it.
    pub url: Url,
}

/// The members of placement's group, and which of them this process is.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Hash of token and members.
    pub cluster_id: ClusterId,
    /// Sorted by name.
    pub members: Vec<Member>,
    me: usize,
}

/// What is wrong with the flags that describe the cluster.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MembershipError {
    #[error("--initial-cluster: {0:?} must be NAME=http://HOST:PORT, for example n1=http://127.0.0.1:2380")]
    Entry(String),
    #[error("--initial-cluster: {0}")]
    Address(#[from] braid_proto::address::AddressError),
    #[error("--initial-cluster names {0:?} twice; braid takes one URL for each member")]
    TwoUrls(String),
    #[error("--initial-cluster gives {0} to two members")]
    SameUrl(Url),
    #[error("--initial-cluster has {0} members; placement works with 1, 3 or 5")]
    Count(usize),
    #[error("--name {name:?} is not in --initial-cluster, which has {known}")]
    NotIn { name: String, known: String },
    #[error("--initial-advertise-peer-urls has {0} URLs; braid takes one")]
    OneUrl(usize),
    #[error(
        "--initial-cluster has {name}={listed}, but this member advertises {advertised}; make the two equal \
         (--initial-advertise-peer-urls)"
    )]
    UrlDiffers { name: String, listed: Url, advertised: Url },
    #[error("{0} cannot be dialled by other processes; give --initial-advertise-peer-urls http://HOST:PORT")]
    Wildcard(Url),
    #[error(
        "--{flag} is {given} ms, but braid's leases between stores are made for {fixed} ms and it cannot be changed; \
         drop the flag or give {fixed}"
    )]
    Timing { flag: &'static str, given: u64, fixed: u64 },
}

impl Membership {
    /// Reads the flags of a placement member.
    pub fn of(args: &MemberArgs) -> Result<Self, MembershipError> {
        check_timing("heartbeat-interval", args.heartbeat_interval, HEARTBEAT_MS)?;
        check_timing("election-timeout", args.election_timeout, ELECTION_MS)?;
        let advertised = advertised(args)?;
        let listed = match &args.initial_cluster {
            Some(text) => entries(text)?,
            None => vec![(args.name.clone(), advertised.clone())],
        };
        Self::new(&args.initial_cluster_token, listed, &args.name, &advertised)
    }

    fn new(token: &str, mut listed: Vec<(String, Url)>, name: &str, advertised: &Url) -> Result<Self, MembershipError> {
        if !matches!(listed.len(), 1 | 3 | 5) {
            return Err(MembershipError::Count(listed.len()));
        }
        listed.sort();
        let texts: Vec<String> = listed.iter().map(|(name, url)| format!("{name}={url}")).collect();
        let cluster_id = ClusterId(stable(std::iter::once(token).chain(texts.iter().map(String::as_str))));
        let members: Vec<Member> = listed
            .into_iter()
            .map(|(name, url)| Member { id: stable([token, name.as_str(), url.to_string().as_str()]), name, url })
            .collect();
        let me = members.iter().position(|member| member.name == name).ok_or_else(|| MembershipError::NotIn {
            name: name.to_owned(),
            known: members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        if members[me].url != *advertised {
            let (listed, advertised) = (members[me].url.clone(), advertised.clone());
            return Err(MembershipError::UrlDiffers { name: name.to_owned(), listed, advertised });
        }
        Ok(Self { cluster_id, members, me })
    }

    /// A group of one, whose URL may be another one at each start.
    pub fn alone(cluster_id: ClusterId, name: &str, url: Url) -> Self {
        let member = Member { id: stable(["alone", name]), name: name.to_owned(), url };
        Self { cluster_id, members: vec![member], me: 0 }
    }

    /// This process.
    pub fn me(&self) -> &Member {
        &self.members[self.me]
    }
}

fn check_timing(flag: &'static str, given: Option<u64>, fixed: u64) -> Result<(), MembershipError> {
    match given {
        Some(given) if given != fixed => Err(MembershipError::Timing { flag, given, fixed }),
        _ => Ok(()),
    }
}

/// The URL that this member gives out: the flag, else its entry in `--initial-cluster`, else where it listens.
fn advertised(args: &MemberArgs) -> Result<Url, MembershipError> {
    if args.initial_advertise_peer_urls.len() > 1 {
        return Err(MembershipError::OneUrl(args.initial_advertise_peer_urls.len()));
    }
    let listed = match (&args.initial_advertise_peer_urls[..], &args.initial_cluster) {
        ([], Some(text)) => entries(text)?.into_iter().find(|(name, _)| *name == args.name).map(|(_, url)| url),
        _ => None,
    };
    let url = args.initial_advertise_peer_urls.first().cloned().or(listed);
    let url = url.unwrap_or_else(|| args.listen_peer_urls[0].clone());
    if url.is_wildcard() { Err(MembershipError::Wildcard(url)) } else { Ok(url) }
}

fn entries(text: &str) -> Result<Vec<(String, Url)>, MembershipError> {
    let mut entries: Vec<(String, Url)> = Vec::new();
    for entry in text.split(',') {
        let (name, url) = entry
            .trim()
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| MembershipError::Entry(entry.to_owned()))?;
        let url: Url = url.parse()?;
        if entries.iter().any(|(other, _)| other == name) {
            return Err(MembershipError::TwoUrls(name.to_owned()));
        }
        if entries.iter().any(|(_, other)| *other == url) {
            return Err(MembershipError::SameUrl(url));
        }
        entries.push((name.to_owned(), url));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    const THREE: &str = "n1=http://127.0.0.1:1,n2=http://127.0.0.1:2,n3=http://127.0.0.1:3";

    fn of(flags: &str) -> Result<Membership, MembershipError> {
        let line = ["braid", "server"].into_iter().chain(flags.split_whitespace()).map(Into::into);
        match parse(line).map(|cli| cli.command) {
            Ok(Command::Server(args)) => Membership::of(&args.member),
            other => panic!("{flags}: {other:?}"),
        }
    }

    #[test]
    fn members_agree_on_every_id_in_whatever_order_they_are_listed() {
        let one = of(&format!("--name n1 --initial-cluster {THREE}")).unwrap();
        let turned = "n3=http://127.0.0.1:3,n1=http://127.0.0.1:1/,n2=http://127.0.0.1:2";
        let two = of(&format!("--name n2 --initial-cluster {turned}")).unwrap();
        assert_eq!((one.cluster_id, &one.members), (two.cluster_id, &two.members));
        assert_eq!((one.me().name.as_str(), two.me().name.as_str()), ("n1", "n2"));
        assert_ne!(one.me().id, two.me().id);
    }

    #[test]
    fn another_token_is_another_cluster() {
        let one = of(&format!("--name n1 --initial-cluster {THREE}")).unwrap();
        let two = of(&format!("--name n1 --initial-cluster {THREE} --initial-cluster-token b")).unwrap();
        assert_ne!(one.cluster_id, two.cluster_id);
        assert_ne!(one.me().id, two.me().id);
    }

    #[test]
    fn a_server_alone_is_a_cluster() {
        let alone = of("").unwrap();
        assert_eq!((alone.members.len(), alone.me().name.as_str()), (1, "default"));
        assert_eq!(alone.me().url.to_string(), "http://localhost:2380");
    }

    #[test]
    fn contradictions_are_named() {
        let cases = [
            ("--name n9 --initial-cluster n1=http://a:1", "--name \"n9\" is not in --initial-cluster, which has n1"),
            ("--name n1 --initial-cluster n1=http://a:1,n2=http://a:2", "has 2 members"),
            ("--name n1 --initial-cluster n1", "must be NAME=http://HOST:PORT"),
            ("--name n1 --initial-cluster n1=a:1", "must start with http://"),
            ("--name n1 --initial-cluster n1=http://a:1,n1=http://a:2", "names \"n1\" twice"),
            (
                "--name n1 --initial-cluster n1=http://a:1,n2=http://a:1,n3=http://a:2",
                "gives http://a:1 to two members",
            ),
            (
                "--name n1 --initial-cluster n1=http://a:1 --initial-advertise-peer-urls http://a:2",
                "advertises http://a:2; make the two equal",
            ),
            ("--listen-peer-urls http://0.0.0.0:2380", "give --initial-advertise-peer-urls"),
            ("--election-timeout 5000", "--election-timeout is 5000 ms"),
            ("--heartbeat-interval 7", "drop the flag or give 100"),
        ];
        for (flags, expect) in cases {
            let error = of(flags).unwrap_err().to_string();
            assert!(error.contains(expect), "{flags}: {error}");
        }
        assert!(of("--election-timeout 1000 --heartbeat-interval 100").is_ok());
    }
}
