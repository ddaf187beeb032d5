//! Stores behind a connection: frames, broken connections, stores that are not who we mean.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use braid_proto::error;
use braid_proto::pb::region_store_server::{RegionStore, RegionStoreServer};
use braid_proto::pb::*;
use futures::stream::{BoxStream, StreamExt};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::client::{fails_as, keys, range};
use crate::cluster::{CLUSTER, Cluster};
use crate::process::Process;
use crate::world::{Script, World};

/// The gRPC side of one store of a [`World`].
struct FakeRegionStore {
    world: Arc<World>,
    id: u64,
    frames: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl RegionStore for FakeRegionStore {
    type ServeStream = BoxStream<'static, Result<ResponseFrame, Status>>;

    async fn serve(&self, request: Request<Streaming<RequestFrame>>) -> Result<Response<Self::ServeStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.expect("a greeting");
        if (first.cluster_id, first.to_store) != (CLUSTER.0, self.id) {
            return Err(Status::failed_precondition(format!("this is store {}", self.id)));
        }
        assert!(first.requests.is_empty(), "nothing is sent before the store has said who it is");
        let store = self.world.store(self.id);
        let (answers, outgoing) = tokio::sync::mpsc::unbounded_channel();
        let frames = Arc::clone(&self.frames);
        tokio::spawn(async move {
            while let Some(Ok(frame)) = requests.next().await {
                frames.fetch_add(1, Ordering::Relaxed);
                for tagged in frame.requests {
                    let answer = store.call(tagged.request.expect("a request"));
                    let answers = answers.clone();
                    tokio::spawn(async move {
                        let responses = vec![TaggedResponse { id: tagged.id, response: Some(answer.await) }];
                        answers.send(Ok(ResponseFrame { responses }))
                    });
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(outgoing).boxed()))
    }

    async fn split_region(&self, _: Request<SplitRegionRequest>) -> Result<Response<SplitRegionResponse>, Status> {
        Err(Status::unimplemented("not for proxies"))
    }

    async fn transfer_leader(
        &self,
        _: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        Err(Status::unimplemented("not for proxies"))
    }

    async fn change_peers(&self, _: Request<ChangePeersRequest>) -> Result<Response<ChangePeersResponse>, Status> {
        Err(Status::unimplemented("not for proxies"))
    }

    async fn merge_region(&self, _: Request<MergeRegionRequest>) -> Result<Response<MergeRegionResponse>, Status> {
        Err(Status::unimplemented("not for proxies"))
    }

    async fn create_regions(
        &self,
        _: Request<CreateRegionsRequest>,
    ) -> Result<Response<CreateRegionsResponse>, Status> {
        Err(Status::unimplemented("not for proxies"))
    }
}

struct Running {
    process: Process,
    frames: Arc<AtomicU64>,
}

fn run(world: &Arc<World>, id: u64, address: &str) -> Running {
    let frames = Arc::new(AtomicU64::new(0));
    let service = FakeRegionStore { world: Arc::clone(world), id, frames: Arc::clone(&frames) };
    let service = RegionStoreServer::new(service).max_decoding_message_size(usize::MAX);
    Running { process: Process::start(address, Server::builder().add_service(service)), frames }
}

/// Store 1 in the proxy's process, 2 and 3 elsewhere.
async fn start(cuts: &[&str]) -> (Cluster, [Running; 2]) {
    let world = World::new(cuts);
    let stores = [run(&world, 2, "127.0.0.1:0"), run(&world, 3, "127.0.0.1:0")];
    let addresses =
        HashMap::from([(2, stores[0].process.address.to_string()), (3, stores[1].process.address.to_string())]);
    (Cluster::start(world, &[1], addresses, |_| {}).await, stores)
}

#[tokio::test]
async fn local_and_remote_stores_serve_one_range() {
    let (cluster, _stores) = start(&["h", "p"]).await;
    let mut client = cluster.client().await;
    for key in ["a", "i", "x"] {
        client.put(key, "v").await.expect("served");
    }
    assert_eq!(cluster.world.take_calls(), ["s1 r1 put", "s2 r2 put", "s3 r3 put"]);
    assert_eq!(keys(&client.range(range("a", "\0")).await.expect("served")), "a i x");
}

#[tokio::test]
async fn large_values_pass_in_both_directions() {
    let (cluster, _stores) = start(&["a"]).await;
    let mut client = cluster.client().await;
    let value = "x".repeat(1 << 20);
    let puts = (0..8).map(|number| {
        let (mut client, value) = (client.clone(), value.clone());
        async move { client.put(&format!("k{number}"), &value).await }
    });
    futures::future::try_join_all(puts).await.expect("served");
    let answer = client.range(range("k", "l")).await.expect("served");
    assert_eq!(answer.kvs.iter().map(|kv| kv.value.len()).sum::<usize>(), 8 << 20);
    assert!(cluster.world.take_calls().iter().all(|call| call.starts_with("s2")));
}

#[tokio::test]
async fn concurrent_requests_share_frames() {
    let (cluster, stores) = start(&["a"]).await;
    let client = cluster.client().await;
    let puts = (0..400).map(|number| {
        let mut client = client.clone();
        async move { client.put(&format!("k{number}"), "v").await }
    });
    futures::future::try_join_all(puts).await.expect("served");
    let frames = stores[0].frames.load(Ordering::Relaxed);
    assert!(frames < 400, "{frames} frames for 400 requests");
}

#[tokio::test]
async fn a_broken_connection_makes_sent_writes_unknown_and_reads_go_elsewhere() {
    let (cluster, mut stores) = start(&["a"]).await;
    let mut client = cluster.client().await;
    client.put("k", "0").await.expect("served");
    cluster.world.script(2, Script::Hang);
    cluster.world.script(2, Script::Hang);
    let before = cluster.world.reached_so_far();
    let (mut writer, mut reader) = (client.clone(), client.clone());
    let write = tokio::spawn(async move { writer.put("k", "1").await });
    let read = tokio::spawn(async move { reader.get("k").await });
    cluster.world.reached(before, 2).await;
    cluster.world.lead(2, 3);
    stores[0].process.kill();
    fails_as(write.await.expect("no panic"), error::TIMEOUT_CONNECTION_LOST);
    assert_eq!(read.await.expect("no panic").expect("asked elsewhere").count, 1);
    client.put("k", "2").await.expect("the new leader is known");
}

#[tokio::test]
async fn a_store_that_comes_back_is_used_again() {
    let (cluster, mut stores) = start(&["a"]).await;
    let mut client = cluster.client().await;
    client.put("k", "0").await.expect("served");
    let address = stores[0].process.address.to_string();
    stores[0].process.kill();
    let waiting = {
        let mut client = client.clone();
        tokio::spawn(async move {
            // The connection may break under this very request; what is unknown is not asked again.
            match client.put("k", "1").await {
                Err(status) if status.message() == error::TIMEOUT_CONNECTION_LOST.message => client.put("k", "1").await,
                answer => answer,
            }
        })
    };
    let _again = run(&cluster.world, 2, &address);
    waiting.await.expect("no panic").expect("served once the store is back");
}

#[tokio::test]
async fn a_store_at_the_wrong_address_is_sent_nothing() {
    let world = World::new(&["a"]);
    let impostor = run(&world, 3, "127.0.0.1:0");
    let addresses =
        HashMap::from([(2, impostor.process.address.to_string()), (3, impostor.process.address.to_string())]);
    let cluster = Cluster::start(world, &[1], addresses, |_| {}).await;
    let mut client = cluster.client().await;
    let write = {
        let mut client = client.clone();
        tokio::spawn(async move { client.put("k", "1").await })
    };
    // The proxy finds nobody at store 2's address, asks the others, who do not lead, and comes around again.
    cluster.world.reached(0, 4).await;
    assert!(cluster.world.take_calls().iter().all(|call| !call.starts_with("s2")), "store 2 was never reached");
    cluster.world.lead(2, 3);
    write.await.expect("no panic").expect("served by the next leader");
    client.get("k").await.expect("served");
}
