//! Header blocks: unpacked with the connection's zlib stream and the draft's dictionary, then parsed. Checks limits
//! before allocating.

use super::SpdyError;
use flate2::{Decompress, FlushDecompress, Status};

/// The dictionary of SPDY/3 (draft 3, section 2.6.10.1): 1423 bytes, Adler-32 e3c6a7c2.
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");
/// Unpacked bytes of one block. Kubernetes' clients send fewer than 200.
const MAX_BLOCK_BYTES: usize = 64 << 10;
/// Headers in one block. Kubernetes' clients send three.
const MAX_HEADERS: u32 = 64;
/// Unpacked at a time.
const STEP_BYTES: usize = 1 << 10;

/// The headers of a stream, names as they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of a name, whatever its case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, values) = self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        // NUL joins several values of one name.
        values.split('\0').next()
    }
}

/// The client's direction of header compression.
#[derive(Debug)]
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Unpacks and parses one block. After an error the connection's stream of blocks is unusable.
    pub(super) fn block(&mut self, mut input: &[u8]) -> Result<Headers, SpdyError> {
        let mut block = Vec::new();
        let mut step = [0; STEP_BYTES];
        loop {
            let (consumed, produced) = (self.0.total_in(), self.0.total_out());
            let outcome = self.0.decompress(input, &mut step, FlushDecompress::Sync);
            let consumed = usize::try_from(self.0.total_in() - consumed).unwrap_or(usize::MAX);
            let produced = usize::try_from(self.0.total_out() - produced).unwrap_or(usize::MAX);
            input = input.get(consumed..).unwrap_or_default();
            match outcome {
                Ok(Status::StreamEnd) => return Err(SpdyError::Headers("the zlib stream ends")),
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(DICTIONARY)
                        .map_err(|_| SpdyError::Headers("another dictionary is asked for"))?;
                    continue;
                }
                Err(_) => return Err(SpdyError::Headers("not a zlib stream")),
            }
            if block.len() + produced > MAX_BLOCK_BYTES {
                return Err(SpdyError::Headers("more than 64 KiB when unpacked"));
            }
            block.extend_from_slice(&step[..produced]);
            // The output buffer was not filled, so this input yields nothing more.
            if produced < STEP_BYTES {
                break;
            }
        }
        if !input.is_empty() {
            return Err(SpdyError::Headers("bytes are left over"));
        }
        parse(&block)
    }
}

pub(super) fn parse(mut block: &[u8]) -> Result<Headers, SpdyError> {
    let count = number(&mut block)?;
    if count > MAX_HEADERS {
        return Err(SpdyError::Headers("more than 64 headers"));
    }
    let mut headers = Vec::new();
    for _ in 0..count {
        headers.push((text(&mut block)?, text(&mut block)?));
    }
    if !block.is_empty() {
        return Err(SpdyError::Headers("bytes after the last header"));
    }
    Ok(Headers(headers))
}

fn number(block: &mut &[u8]) -> Result<u32, SpdyError> {
    let (number, rest) = block.split_first_chunk().ok_or(SpdyError::Headers("cut short"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*number))
}

fn text(block: &mut &[u8]) -> Result<String, SpdyError> {
    let length = number(block)? as usize;
    let (text, rest) = block.split_at_checked(length).ok_or(SpdyError::Headers("cut short"))?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Headers("not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::super::client::Deflater;
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn blocks_of_a_known_client_are_read_in_order() {
        // Made with zlib at level 9.
        let mut inflater = Inflater::new();
        let first = hex("78f9e3c6a7c202a62346703a2b294a4dcc851625aca9a08006000000ffff");
        assert_eq!(inflater.block(&first).unwrap().get("streamType"), Some("error"));
        let second = hex("c22e555c02cc2e00000000ffff");
        assert_eq!(inflater.block(&second).unwrap().get("streamtype"), Some("stdin"));
        assert_eq!(inflater.block(&second).unwrap().get("port"), None);
    }

    #[test]
    fn what_a_compressor_makes_is_read_back() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        for round in 0..100 {
            let id = round.to_string();
            let pairs = [("streamtype", "data"), ("port", "8080"), ("requestid", id.as_str())];
            let headers = inflater.block(&deflater.block(&pairs)).unwrap();
            assert_eq!(headers.get("requestID"), Some(id.as_str()));
        }
        assert_eq!(inflater.block(&deflater.block(&[("a", "x\0y")])).unwrap().get("a"), Some("x"));
    }

    #[test]
    fn hostile_blocks_are_refused() {
        let long = "x".repeat(MAX_BLOCK_BYTES);
        let many: Vec<_> = (0..65).map(|_| ("a", "b")).collect();
        let refused = |block: &[u8]| Inflater::new().block(block).unwrap_err().to_string();
        assert!(refused(&Deflater::new().block(&[("a", &long)])).contains("64 KiB"));
        assert!(refused(&Deflater::new().block(&many)).contains("64 headers"));
        assert!(refused(b"GET / HTTP/1.1").contains("not a zlib stream"));
        assert!(refused(&[]).contains("cut short"));
        let raw = |block: &[u8]| refused(&Deflater::new().raw(block));
        assert!(raw(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).contains("cut short"));
        assert!(raw(&[0, 0, 0, 0, 0]).contains("after the last"));
        assert!(raw(&[0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0]).contains("UTF-8"));
        // A megabyte of zeroes in a kilobyte.
        assert!(raw(&vec![0; 1 << 20]).contains("64 KiB"));
        // A last block, and what cannot be its checksum.
        let mut inflater = Inflater::new();
        inflater.block(&[&Deflater::new().block(&[("a", "b")])[..], &[3, 0, 0x55]].concat()).unwrap();
        assert!(inflater.block(&[0x55; 8]).unwrap_err().to_string().contains("not a zlib stream"));
    }

    #[test]
    fn a_foreign_dictionary_is_refused() {
        assert!(!Inflater::new().block(&[0x78, 0xf9, 1, 2, 3, 4, 0, 0]).unwrap_err().to_string().is_empty());
    }
}
