//! Entry points for the fuzz targets `spdy` and `websocket` in `fuzz/`, which sees only public items: client input to
//! its parsers. Built with `--cfg fuzzing`, and for a test that uses every entry point. A panic, a standstill or a
//! failed assertion here is a finding.

use super::size::Sizes;
use super::spdy::fuzz;

/// The first byte chooses: header blocks as they arrive, or the content of such a block; a connection's bytes, or its
/// frames with well-compressed headers; terminal sizes.
pub fn any(data: &[u8]) {
    let Some((door, data)) = data.split_first() else { return };
    match door % 5 {
        0 => fuzz::blocks(data),
        1 => fuzz::headers(data),
        2 => fuzz::connection(data.to_vec()),
        3 => fuzz::connection(fuzz::frames(data)),
        _ => sizes(data),
    }
}

/// A client's WebSocket bytes after the handshake. The first byte chooses the protocol.
pub fn websocket(data: &[u8]) {
    super::websocket::fuzz(data);
}

/// Cut anywhere, the same sizes are found.
///
/// # Panics
/// If that does not hold, or one of them is empty.
fn sizes(data: &[u8]) {
    let mut whole = Sizes::default();
    let last = whole.feed(data);
    let mut pieces = Sizes::default();
    let mut again = None;
    for byte in data {
        again = pieces.feed(std::slice::from_ref(byte)).or(again);
    }
    assert_eq!(last, again);
    assert!(last.is_none_or(|size| size.columns > 0 && size.rows > 0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fuzz::seeds::through;

    #[test]
    fn seeds_and_what_is_near_them_go_through_every_door() {
        through("spdy", 5, any);
        through("websocket", 4, websocket);
    }
}
