//! The services over gRPC.

use braid_proto::pb::NumberRequest;
use braid_proto::pb::admin_client::AdminClient;
use braid_proto::pb::sequencer_client::SequencerClient;
use futures::{StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_numbering_requests_is_answered_in_order() {
    let mut group = Group::start(1).await;
    let leader = group.leader().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let router = tonic::transport::Server::builder().add_routes(leader.add_to(Routes::default()));
    let server = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));

    let request = |seq| NumberRequest {
        client_id: 1,
        incarnation: 1,
        seq,
        count: 2,
        cluster_id: CLUSTER.0,
        ..Default::default()
    };
    let mut client = SequencerClient::connect(format!("http://{addr}")).await.expect("connected");
    let answers = client.number(stream::iter((1..=100).map(request))).await.expect("a stream").into_inner();
    let answers: Vec<(u64, i64)> =
        answers.map(|answer| answer.map(|a| (a.seq, a.base)).expect("an answer")).collect().await;
    assert_eq!(answers, (1..=100).map(|seq| (seq, 2 * seq as i64 - 1)).collect::<Vec<_>>());

    let mut client = AdminClient::connect(format!("http://{addr}")).await.expect("connected");
    let status = client.status(StatusRequest {}).await.expect("answered").into_inner();
    assert_eq!((status.revision, status.sequencer_epoch, status.leader_member), (201, 1, 1));
    assert_eq!(status.waiting_for, "0 of 3 stores have joined");
    server.abort();
    group.stop_all().await;
}
