//! A client's deadline, as gRPC over HTTP/2 carries it (`grpc-timeout`). tonic's own middleware answers Cancelled when it has
//! passed, which clients attribute to themselves; the door answers DeadlineExceeded.

use http::HeaderMap;
use std::time::Duration;
use tonic::metadata::MetadataMap;

/// The header of gRPC over HTTP/2.
const HEADER: &str = "grpc-timeout";

/// The deadline that the client sent.
pub(super) fn of(metadata: &MetadataMap) -> Option<Duration> {
    read(metadata.get(HEADER)?.to_str().ok()?)
}

/// The same, before tonic has read the request.
pub(super) fn limit(headers: &HeaderMap) -> Option<Duration> {
    read(headers.get(HEADER)?.to_str().ok()?)
}

/// Up to eight digits and a unit, as the gRPC protocol has it; anything else is no deadline.
fn read(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_grpcs() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, text.parse().unwrap());
            limit(&headers)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("15S"), Some(Duration::from_secs(15)));
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("99999999u"), Some(Duration::from_micros(99_999_999)));
        for wrong in ["", "S", "1", "999999999S", "-1S", "1x"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
