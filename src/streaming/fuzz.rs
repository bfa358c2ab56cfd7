//! Doors for the fuzz targets `spdy` and `websocket` in `fuzz/`, which sees only what is public: what clients send, to the parsers that meet
//! it. Built with `--cfg fuzzing`, and for a test that goes through every door. A panic or a standstill is a finding, and so is what is asserted here.

use super::size::Sizes;
use super::spdy::fuzz;

/// The first byte chooses: header blocks as they come, or what such a block contains; a connection's bytes, or its frames
/// with headers that are well compressed; sizes of a terminal.
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

/// What a client sends over a WebSocket once the handshake is done. The first byte chooses the protocol.
pub fn websocket(data: &[u8]) {
    super::websocket::fuzz(data);
}

/// Cut anywhere, the same sizes are found.
///
/// # Panics
/// When that is not so, or one of them is empty.
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
