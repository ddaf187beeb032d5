//! Tables of requests and what becomes of them ([`script`] explains the words), and random programs against a naive model
//! of etcd ([`random`]).

mod compares;
mod deletes;
mod in_flight;
mod naive;
mod puts;
mod random;
mod ranges;
mod rows;
mod script;
mod transactions;
