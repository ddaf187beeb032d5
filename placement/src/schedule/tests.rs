//! Whole sets of schedulers on simulated clusters, from many starts, with lost orders and dying stores.

mod flat;
mod growth;
mod idle;
mod load;
mod repair;
mod rest;
mod sim;

use sim::Sim;
