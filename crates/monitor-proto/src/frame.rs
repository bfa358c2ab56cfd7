//! Length-prefixed JSON frames.

use serde::Serialize;

/// Largest JSON text in a frame. A list of a thousand containers takes about 250 KiB.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Bytes of the length in front.
pub const HEADER_BYTES: usize = 4;

/// A frame that cannot be made or read; the connection is unusable afterwards.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length exceeds [`MAX_FRAME_BYTES`].
    #[error("frame of {0} bytes exceeds the limit of {MAX_FRAME_BYTES}")]
    TooLong(usize),
    /// The value has no JSON form.
    #[error("encode frame: {0}")]
    Encode(#[from] serde_json::Error),
}

/// The bytes of one frame.
///
/// # Errors
/// See [`FrameError`].
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - HEADER_BYTES;
    let prefix = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    bytes[..HEADER_BYTES].copy_from_slice(&prefix.to_le_bytes());
    Ok(bytes)
}

/// Takes the first complete frame (its JSON text) off the front of `input`; `None` when more bytes are needed.
///
/// # Errors
/// [`FrameError::TooLong`] as soon as the length is known.
pub fn take_frame(input: &mut Vec<u8>) -> Result<Option<Vec<u8>>, FrameError> {
    let Some(prefix) = input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong(length));
    }
    if input.len() < HEADER_BYTES + length {
        return Ok(None);
    }
    let frame = input[HEADER_BYTES..HEADER_BYTES + length].to_vec();
    input.drain(..HEADER_BYTES + length);
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let mut wire = encode(&"one").unwrap();
        wire.extend(encode(&[1, 2]).unwrap());
        assert_eq!(&wire[..9], b"\x05\0\0\0\"one\"");
        let (mut input, mut seen) = (Vec::new(), Vec::new());
        for byte in wire {
            input.push(byte);
            while let Some(frame) = take_frame(&mut input).unwrap() {
                seen.push(String::from_utf8(frame).unwrap());
            }
        }
        assert_eq!(seen, ["\"one\"", "[1,2]"]);
        assert!(input.is_empty());
    }

    #[test]
    fn too_long_is_refused_from_the_header_on() {
        let mut input = u32::try_from(MAX_FRAME_BYTES + 1).unwrap().to_le_bytes().to_vec();
        assert!(matches!(take_frame(&mut input), Err(FrameError::TooLong(_))));
        assert!(matches!(encode(&"x".repeat(MAX_FRAME_BYTES)), Err(FrameError::TooLong(_))));
    }
}
