//! What placement tells stores to do, and how it reaches them. The trait is the seam: tests put stores of their own
//! behind it.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use braid_proto::id::StoreId;
use braid_proto::pb::region_store_client::RegionStoreClient;
use braid_proto::pb::{
    ChangePeersRequest, ChangePeersResponse, CreateRegionsRequest, CreateRegionsResponse, MergeRegionRequest,
    MergeRegionResponse, SplitRegionRequest, SplitRegionResponse, Store, TransferLeaderRequest, TransferLeaderResponse,
};
use braid_proto::service::BoxFuture;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

/// The first regions of a large cluster pass gRPC's default of 4 MiB.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Connecting takes a round trip; a store that needs longer is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A store was not reached, or did not answer; the order may have been carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAnswer {
    /// Which store.
    pub store: StoreId,
    /// What the connection says.
    pub why: String,
    /// The store does not know this order, and never will as long as it runs.
    pub unknown_order: bool,
}

impl NoAnswer {
    /// Nothing came back; why.
    pub fn new(store: StoreId, why: impl Into<String>) -> Self {
        Self { store, why: why.into(), unknown_order: false }
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unknown_order {
            true => write!(f, "{} runs a version that cannot do this ({})", self.store, self.why),
            false => write!(f, "{} does not answer: {}", self.store, self.why),
        }
    }
}

/// What a store answers, or that it does not.
pub type Answer<T> = BoxFuture<Result<T, NoAnswer>>;

/// Orders to stores. placement -> store.
pub trait StoreOrders: Send + Sync + 'static {
    /// Create the peers of first regions. Idempotent.
    fn create_regions(
        &self,
        store: &Store,
        request: CreateRegionsRequest,
        patience: Duration,
    ) -> Answer<CreateRegionsResponse>;

    /// Split a region that the store leads.
    fn split_region(
        &self,
        store: &Store,
        request: SplitRegionRequest,
        patience: Duration,
    ) -> Answer<SplitRegionResponse>;

    /// Hand over leadership of a region that the store leads.
    fn transfer_leader(
        &self,
        store: &Store,
        request: TransferLeaderRequest,
        patience: Duration,
    ) -> Answer<TransferLeaderResponse>;

    /// Change the peers of a region that the store leads.
    fn change_peers(
        &self,
        store: &Store,
        request: ChangePeersRequest,
        patience: Duration,
    ) -> Answer<ChangePeersResponse>;

    /// Merge a region that the store leads into its neighbour.
    fn merge_region(
        &self,
        store: &Store,
        request: MergeRegionRequest,
        patience: Duration,
    ) -> Answer<MergeRegionResponse>;
}

/// Orders over gRPC; connections are kept, one an address.
#[derive(Debug, Default)]
pub struct GrpcOrders {
    channels: Mutex<HashMap<String, Channel>>,
}

impl GrpcOrders {
    fn client(&self, store: &Store) -> Result<RegionStoreClient<Channel>, NoAnswer> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(&store.peer_addr) {
            Some(channel) => channel.clone(),
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{}", store.peer_addr))
                    .map_err(|error| NoAnswer::new(StoreId(store.id), error.to_string()))?;
                let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
                channels.insert(store.peer_addr.clone(), channel.clone());
                channel
            }
        };
        Ok(RegionStoreClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}

macro_rules! orders {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        $(fn $name(&self, store: &Store, request: $request, patience: Duration) -> Answer<$response> {
            let (id, client) = (StoreId(store.id), self.client(store));
            Box::pin(async move {
                let mut client = client?;
                in_time(id, patience, client.$name(request)).await
            })
        })*
    };
}

impl StoreOrders for GrpcOrders {
    orders! {
        create_regions(CreateRegionsRequest) -> CreateRegionsResponse;
        split_region(SplitRegionRequest) -> SplitRegionResponse;
        transfer_leader(TransferLeaderRequest) -> TransferLeaderResponse;
        change_peers(ChangePeersRequest) -> ChangePeersResponse;
        merge_region(MergeRegionRequest) -> MergeRegionResponse;
    }
}

async fn in_time<T>(
    store: StoreId,
    patience: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, NoAnswer> {
    match tokio::time::timeout(patience, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => {
            let unknown_order = status.code() == Code::Unimplemented;
            Err(NoAnswer { unknown_order, ..NoAnswer::new(store, status.message()) })
        }
        Err(_) => Err(NoAnswer::new(store, format!("nothing came back in {} s", patience.as_secs()))),
    }
}
