//! Leases whose keys lie in other regions than their record. The rules, step by step with their crash points, are in
//! `docs/decisions/0006-leases.md`.

pub mod revoke;
