//! A connection to the first endpoint that answers, and what its refusals mean.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use braid_proto::pb::admin_client::AdminClient;
use braid_proto::pb::inspect_client::InspectClient;
use braid_proto::pb::{PlacementHeader, RegionCheckRequest, RegionCheckResponse};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::ask::{Ask, Order};
use crate::args::types::Url;

/// Time for one endpoint to accept a connection.
const DIAL: Duration = Duration::from_secs(2);

/// The cluster's admin service.
pub struct Connection {
    client: AdminClient<Channel>,
    /// What proxies answer by themselves.
    inspect: InspectClient<Channel>,
    url: Url,
    endpoints: Vec<Url>,
    timeout: Duration,
}

impl Connection {
    /// Dials `endpoints` in turn.
    pub async fn open(endpoints: &[Url], timeout: Duration) -> Result<Self> {
        let mut failures = Vec::new();
        for url in endpoints {
            let endpoint = Endpoint::from_shared(url.to_string())
                .with_context(|| format!("--endpoints: {url}"))?
                .connect_timeout(DIAL.min(timeout));
            match endpoint.connect().await {
                Ok(channel) => {
                    let client = AdminClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
                    let inspect = InspectClient::new(channel).max_decoding_message_size(usize::MAX);
                    return Ok(Self { client, inspect, url: url.clone(), endpoints: endpoints.to_vec(), timeout });
                }
                Err(error) => failures.push(format!("{url}: {}", root(&error))),
            }
        }
        bail!("no endpoint answers ({}); give a running cluster's client address to --endpoints", failures.join("; "))
    }

    /// Dials again: the endpoint may have gone, others may be there.
    pub async fn reopen(&mut self) -> Result<()> {
        *self = Self::open(&self.endpoints, self.timeout).await?;
        Ok(())
    }

    /// Waits for answers at least this long.
    pub fn be_patient(&mut self, patience: Duration) {
        self.timeout = self.timeout.max(patience);
    }

    /// What placement's leader answers.
    pub async fn ask<Q: Ask>(&mut self, question: Q) -> Result<Q::Answer> {
        let request = self.request(question);
        let answer = Q::send(&mut self.client, request).await;
        self.answer(answer, Q::header)
    }

    /// What placement's leader has done; fails with "cannot `what`" and the reason if it refuses.
    pub async fn order<Q: Order>(&mut self, order: Q, what: impl fmt::Display) -> Result<Q::Answer> {
        let answer = self.ask(order).await?;
        match Q::failed(&answer) {
            "" => Ok(answer),
            why => bail!("cannot {what}: {why}"),
        }
    }

    /// What a proxy finds out by asking stores.
    pub async fn region_check(&mut self, request: RegionCheckRequest) -> Result<RegionCheckResponse> {
        let request = self.request(request);
        let answer = self.inspect.region_check(request).await;
        self.answer(answer, |_| None)
    }

    /// `message` with the deadline of this command.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    /// The message of an answer, or why there is none.
    fn answer<T>(
        &self,
        result: Result<Response<T>, Status>,
        header: impl Fn(&T) -> Option<&PlacementHeader>,
    ) -> Result<T> {
        let message = result.map_err(|status| self.explain(&status))?.into_inner();
        match header(&message) {
            Some(header) if header.refused && header.not_leader.is_empty() => {
                bail!("placement has no leader at the moment; try again, or start a majority of its members")
            }
            Some(header) if header.refused => {
                let (asked, leader) = (&self.url, &header.not_leader);
                bail!(
                    "{asked} does not lead placement, {leader} does: try again; if {asked} is a peer address, give a \
                     client address to --endpoints instead"
                )
            }
            _ => Ok(message),
        }
    }

    fn explain(&self, status: &Status) -> anyhow::Error {
        match status.code() {
            Code::Unimplemented => anyhow!("{} is no braid client address; see --endpoints", self.url),
            Code::DeadlineExceeded | Code::Cancelled => {
                anyhow!("{} did not answer within {} s; see --command-timeout", self.url, self.timeout.as_secs())
            }
            _ => anyhow!("{}: {}", self.url, status.message()),
        }
    }
}

/// The innermost cause: tonic's own text is only "transport error".
fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
