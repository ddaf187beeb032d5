//! A network between members of one process that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use braid_host::{Inbound, Transport};
use braid_proto::pb::members_server::Members as _;
use braid_proto::pb::{JoinRequest, JoinResponse, MemberRequest, RaftFrame};
use braid_proto::service::BoxFuture;
use parking_lot::Mutex;
use tonic::{Request, Response};

use super::CLUSTER;
use crate::leader::Shared;
use crate::membership::{Others, Says};
use crate::placement::{MemberConfig, Placement};
use crate::service::MembersService;

#[derive(Default)]
pub struct Net {
    members: Mutex<BTreeMap<u64, Arc<dyn Inbound>>>,
    services: Mutex<BTreeMap<u64, Arc<Shared>>>,
    isolated: Mutex<BTreeSet<u64>>,
    /// Who gets no answers from other members' services, and gives some.
    deaf: Mutex<BTreeSet<u64>>,
    pub snapshots: AtomicUsize,
}

impl Net {
    pub fn attach(&self, member: &Placement) {
        self.members.lock().insert(member.id(), member.inbound());
        self.services.lock().insert(member.id(), Arc::clone(&member.shared));
    }

    pub fn detach(&self, member: u64) {
        self.members.lock().remove(&member);
        self.services.lock().remove(&member);
    }

    /// The service of `to`, if `from` reaches it.
    fn service(&self, from: u64, to: u64) -> Option<MembersService> {
        let isolated = self.isolated.lock();
        if isolated.contains(&from) || isolated.contains(&to) || self.deaf.lock().contains(&from) {
            return None;
        }
        self.services.lock().get(&to).map(|shared| MembersService::new(Arc::clone(shared)))
    }

    /// Nobody reaches `member`, and it reaches nobody.
    pub fn isolate(&self, member: u64) {
        self.isolated.lock().insert(member);
    }

    /// `member` answers others, and is not answered.
    pub fn deafen(&self, member: u64) {
        self.deaf.lock().insert(member);
    }

    pub fn heal(&self) {
        self.isolated.lock().clear();
        self.deaf.lock().clear();
    }

    fn reach(&self, frame: &RaftFrame) -> Option<Arc<dyn Inbound>> {
        let isolated = self.isolated.lock();
        if isolated.contains(&frame.from_host) || isolated.contains(&frame.to_host) {
            return None;
        }
        self.members.lock().get(&frame.to_host).cloned()
    }
}

/// The network as one member uses it.
pub struct Port(pub Arc<Net>);

impl Transport for Port {
    fn send(&self, frame: RaftFrame) -> bool {
        let to = self.0.reach(&frame);
        to.map(|inbound| inbound.receive(frame)).is_some()
    }

    fn send_snapshot(&self, frame: RaftFrame, files: Vec<PathBuf>, done: Box<dyn FnOnce(Result<(), String>) + Send>) {
        let Some(inbound) = self.0.reach(&frame) else { return done(Err("not reachable".to_owned())) };
        let number = self.0.snapshots.fetch_add(1, Ordering::AcqRel);
        std::thread::spawn(move || {
            let dir = inbound.snapshot_dir().join(format!("in-{number}"));
            match copy(&files, &dir) {
                Ok(()) => {
                    inbound.receive_snapshot(frame, dir);
                    done(Ok(()));
                }
                Err(error) => done(Err(error.to_string())),
            }
        });
    }
}

/// The other members as one of them reaches them.
pub struct Company {
    pub net: Arc<Net>,
    pub from: u64,
}

impl Others for Company {
    fn ask(&self, member: &MemberConfig) -> BoxFuture<Says> {
        let service = self.net.service(self.from, member.id).ok_or("no answer".to_owned());
        let request = MemberRequest { cluster_id: CLUSTER.0 };
        Box::pin(async move {
            let answer = service?.get_member(Request::new(request)).await;
            answer.map(Response::into_inner).map_err(|status| status.message().to_owned())
        })
    }

    fn join(&self, member: &MemberConfig, request: JoinRequest) -> BoxFuture<Option<JoinResponse>> {
        let service = self.net.service(self.from, member.id);
        Box::pin(async move { Some(service?.join(Request::new(request)).await.ok()?.into_inner()) })
    }
}

fn copy(files: &[PathBuf], dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for (number, file) in files.iter().enumerate() {
        fs::copy(file, dir.join(format!("{number}.sst")))?;
    }
    Ok(())
}
