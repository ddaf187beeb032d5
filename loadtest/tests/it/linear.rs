//! The checker of strict serializability: it accepts what a right server answers, and finds each planted fault.
//!
//! - `simulate`: clients and a server in virtual time, right or with one fault.
//! - `planted`: one test for each kind of fault.
//! - `unknown`: what requests without an answer may have done, and what not.
//! - `second`: a general checker, which searches for an order, agrees on thousands of small histories.

mod planted;
mod second;
mod simulate;
mod unknown;
