//! How one service calls another, whether it lives in the same process or behind a connection.
//!
//! The binary hands each service an implementation: a local one calls straight into the other service, without
//! encoding anything; a remote one speaks gRPC. Both obey the same contract.

use std::future::Future;
use std::pin::Pin;

use futures::stream::BoxStream;

use crate::pb::{NumberAnswer, NumberRequest, RegionRequest, RegionResponse, WatchFeed, WatchOrder};

/// A future that owns what it needs.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// The regions of one store. proxy -> store.
pub trait RegionService: Send + Sync + 'static {
    /// Serves one request. Always answers: refusals, timeouts and lost connections are part of the response, and a
    /// write whose outcome cannot be known answers `Refusal::unknown`.
    fn call(&self, request: RegionRequest) -> BoxFuture<RegionResponse>;

    /// Whether it can be followed here; otherwise only over a connection to its store.
    fn can_be_followed(&self) -> bool {
        false
    }

    /// Obeys orders about what happens in the regions, and tells what comes of them. Ends with the orders, or at one that is
    /// against the protocol. `None`: it cannot be followed here.
    fn follow(&self, orders: BoxStream<'static, WatchOrder>) -> Option<BoxStream<'static, WatchFeed>> {
        _ = orders;
        None
    }
}

/// The sequencer of this process's placement member. store -> placement, proxy -> placement.
pub trait NumberService: Send + Sync + 'static {
    /// Answers at once, from memory: numbers, or a refusal that says where to ask.
    fn number(&self, request: &NumberRequest) -> NumberAnswer;
}
