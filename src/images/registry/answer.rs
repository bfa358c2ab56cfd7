//! What a registry's refusal means: status and body to one error.

use super::client::Answer;
use super::fetch::Response;
use crate::images::document;
use crate::images::error::{ImageError, RegistryMessage, cut};
use crate::images::offload::blocking;
use crate::model::plain;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

/// Bytes read of an error body; a registry's own are a few hundred.
const MAX_ERROR_BODY: usize = 64 << 10;
/// Time for an error body; without it the status alone is told.
const ERROR_BODY_TIME: Duration = Duration::from_secs(5);
/// Longest wait that a registry may ask for: the kubelet backs off by itself, and tells it.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// What a registry says with a refusal.
#[derive(Serialize, Deserialize)]
pub(in crate::images) struct Refusal {
    errors: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Reads a refusal of `host` to its error. `head`: the body has nothing to read. Nor is one read that comes from where the
/// host has led: it may be anything's that the node can reach, and the error goes to whoever named the image.
pub(super) async fn refusal(answer: Answer, what: &str, host: &str, head: bool) -> ImageError {
    let Answer { response, led_to } = answer;
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let registry = if head || led_to.is_some() { None } else { message(response).await };
    let host = led_to.map_or_else(|| host.to_owned(), |place| format!("{place}, where {host} redirects"));
    let what = what.to_owned();
    match status {
        StatusCode::NOT_FOUND => ImageError::NotAtRegistry { what, host, registry },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ImageError::Unauthorized { what, host, status: status.as_u16(), registry }
        }
        StatusCode::TOO_MANY_REQUESTS => ImageError::RateLimited { what, host, retry_after, registry },
        s if s.is_server_error() || s == StatusCode::REQUEST_TIMEOUT => {
            let told = registry.map_or_else(String::new, |m| format!(": {m}"));
            ImageError::Unavailable { what, host, reason: format!("HTTP status {status}{told}"), retry_after }
        }
        _ => ImageError::Protocol { what, host, reason: format!("HTTP status {status}"), registry },
    }
}

async fn message(mut response: Response) -> Option<RegistryMessage> {
    let read = async {
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ERROR_BODY {
                break;
            }
        }
        bytes
    };
    let bytes = tokio::time::timeout(ERROR_BODY_TIME, read).await.ok()?;
    let body = blocking(move || Ok(document::read::<Refusal>(&bytes))).await.ok()?.ok()?;
    let first = body.errors.into_iter().next()?;
    let text = |text: &str| cut(&plain::one_line(&cut(text)));
    Some(RegistryMessage { code: text(&first.code), message: text(&first.message) })
}

/// `Retry-After` in seconds or as a date, never more than the cap.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => http_date(text)?.duration_since(SystemTime::now()).unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// IMF-fixdate only (`Sun, 06 Nov 1994 08:49:37 GMT`), which RFC 9110 wants of every sender.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, clock, "GMT"] = parts.as_slice() else { return None };
    let month = u64::try_from(MONTHS.iter().position(|m| m == month)?).ok()? + 1;
    let (day, year) = (day.parse::<u64>().ok()?, year.parse::<u64>().ok()?);
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    let time: Vec<u64> = clock.split(':').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second] = time.as_slice() else { return None };
    if *hour > 23 || *minute > 59 || *second > 60 {
        return None;
    }
    // Days since the epoch in the proleptic Gregorian calendar, years starting in March.
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let since = days.checked_sub(719_468)? * 86_400 + hour * 3600 + minute * 60 + second;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::header::RETRY_AFTER, value.parse().unwrap())])
    }

    #[test]
    fn retry_after_is_capped_and_garbage_ignored() {
        assert_eq!(retry_after(&header("7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&header("315360000")), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after(&header("Fri, 31 Dec 9999 23:59:59 GMT")), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after(&header("Sun, 06 Nov 1994 08:49:37 GMT")), Some(Duration::ZERO));
        assert_eq!(retry_after(&header("soon")), None);
        assert_eq!(retry_after(&header("Sun, 99 Foo 1994 08:49:37 GMT")), None);
    }

    #[test]
    fn dates_count_from_the_epoch() {
        let at = |text| http_date(text).unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(at("Thu, 01 Jan 1970 00:00:00 GMT"), 0);
        assert_eq!(at("Sun, 06 Nov 1994 08:49:37 GMT"), 784_111_777);
        assert_eq!(at("Thu, 29 Feb 2024 12:00:00 GMT"), 1_709_208_000);
    }
}
