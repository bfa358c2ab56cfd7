//! A door for the fuzz target `spdy` in `fuzz/`, which sees only what is public: what clients send, to the parsers that meet
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
    use std::path::Path;

    /// Rounds through each seed; `make fuzz` does millions.
    const ROUNDS: u64 = 100;

    #[test]
    fn seeds_and_what_is_near_them_go_through_every_door() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/spdy");
        let seeds: Vec<_> =
            std::fs::read_dir(dir).unwrap().flatten().map(|e| std::fs::read(e.path()).unwrap()).collect();
        assert!((0..5).all(|door| seeds.iter().any(|seed| seed[0] == door)), "a door without a seed");
        // xorshift64: the same bytes in every run.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
        };
        for seed in seeds {
            any(&seed);
            for round in 0..ROUNDS {
                let mut data = seed.clone();
                for _ in 0..=round % 4 {
                    let at = 1 + random(data.len() - 1);
                    match random(3) {
                        0 => data[at] = u8::try_from(random(256)).unwrap(),
                        1 => data.truncate(at + 1),
                        _ => data.extend_from_within(at..),
                    }
                }
                any(&data);
            }
        }
    }
}
