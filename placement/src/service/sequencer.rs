//! Numbering over gRPC: the requests of a stream are answered in their order, from memory.

use std::sync::Arc;

use braid_proto::pb::sequencer_server::Sequencer;
use braid_proto::pb::{NumberAnswer, NumberRequest};
use braid_proto::service::NumberService;
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::office::Office;

/// See the module's page.
pub struct SequencerService {
    office: Arc<Office>,
}

impl SequencerService {
    /// Answers from `office`.
    pub fn new(office: Arc<Office>) -> Self {
        Self { office }
    }
}

#[tonic::async_trait]
impl Sequencer for SequencerService {
    type NumberStream = BoxStream<'static, Result<NumberAnswer, Status>>;

    async fn number(&self, request: Request<Streaming<NumberRequest>>) -> Result<Response<Self::NumberStream>, Status> {
        let office = Arc::clone(&self.office);
        let answers = request.into_inner().map(move |request| request.map(|request| office.number(&request)));
        Ok(Response::new(answers.boxed()))
    }
}
