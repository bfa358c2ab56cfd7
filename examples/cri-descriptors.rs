//! Writes the descriptor set of `proto/api.proto`, as this build compiled it, to standard output.
//! `tests/proto-check` compares it with k8s.io/cri-api; nothing else needs it.

use std::io::Write as _;

/// The set that `build.rs` leaves beside the generated code.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.fds"));

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(DESCRIPTORS)?;
    out.flush()
}
