//! What a program runs against.

use crate::model::{Answer, Model, Request};

/// Something that answers requests. Nobody else may change it meanwhile.
pub trait Target: Send {
    /// Its answer. A failed call is an answer too: [`Answer::Refused`].
    fn answer(&mut self, request: &Request) -> impl Future<Output = Answer> + Send;

    /// Makes a lease of this id that outlives the run; false if the target knows no leases.
    fn grant(&mut self, lease: i64) -> impl Future<Output = anyhow::Result<bool>> + Send;
}

/// A model answers as a server that agrees with it does.
impl Target for Model {
    async fn answer(&mut self, request: &Request) -> Answer {
        Answer::of(Self::answer(self, request))
    }

    async fn grant(&mut self, lease: i64) -> anyhow::Result<bool> {
        Self::grant(self, lease);
        Ok(true)
    }
}
