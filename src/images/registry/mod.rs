//! The registry side: which hosts serve a reference (`hosts`), how they are asked (`client`, `session`; the process that
//! speaks HTTP is `fetch`'s) and with which credentials (`auth`), and where they may lead (`reach`). Hands out verified documents and byte streams; never touches the store.

mod answer;
mod attached;
mod auth;
mod auth_files;
mod blob;
mod challenge;
mod client;
mod clients;
mod documents;
mod endpoints;
mod fetch;
mod files;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod hosts;
mod names;
mod pace;
mod parts;
mod proxy;
mod reach;
mod registries_conf;
mod session;
mod turn;

pub(super) use answer::Refusal;
pub use auth::Credentials;
pub(super) use auth::TokenReply;
pub(crate) use blob::Blob;
pub(crate) use client::Registry;
pub(crate) use endpoints::looked_at;
pub use endpoints::{Endpoint, LookedAt, Probe};
pub(super) use fetch::PROGRAM;
pub(super) use files::read as read_config;
#[cfg(test)]
pub(crate) use proxy::Proxies;
pub(crate) use session::Session;
