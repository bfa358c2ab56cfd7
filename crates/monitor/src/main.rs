//! podwright-monitor: one small process per pod that owns the pod's namespaces, is the parent of its containers, writes
//! their logs and records how they end.
//!
//! Mechanism only: it decides nothing about pods, knows no CRI, no image, no network plugin. Single-threaded: one poll
//! loop ([`pod`]) over signals, the control socket, and the containers' output. It must never block on one container,
//! and never end before the daemon says so.

#![forbid(unsafe_code)]

mod attach;
mod client;
mod container;
mod diary;
mod ids;
mod launch;
mod logfile;
mod namespaces;
mod null;
mod offspring;
mod oom;
mod output;
mod pace;
mod pod;
mod podinit;
mod reap;
mod record;
mod requests;
mod rights;
mod runtime;
mod session;
mod shutdown;

use std::process::ExitCode;

/// Blocks of this size and more go back to the kernel when freed.
const LARGE_BLOCK_BYTES: i32 = 32 * 1024;

fn main() -> ExitCode {
    if podinit::is_wanted() {
        return podinit::run();
    }
    podwright_sys::memory::keep_small(LARGE_BLOCK_BYTES);
    match launch::launch() {
        launch::Outcome::Pod(mut pod) => {
            pod.run();
            ExitCode::SUCCESS
        }
        launch::Outcome::NobodyThere => ExitCode::SUCCESS,
        launch::Outcome::Failed => ExitCode::FAILURE,
    }
}
