//! How long an error answer asks to wait.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

/// Reads `retry-after-ms` (milliseconds; OpenAI and Azure), else `Retry-After` as seconds or as an HTTP date
/// ([RFC 9110, 10.2.3](https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3)). No wait at all, as until a date in the past,
/// is as if it were not there: whoever sends it does not know how long it takes.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    if let Some(millis) = text("retry-after-ms").and_then(number) {
        return Duration::try_from_secs_f64(millis / 1e3).ok();
    }
    let value = text("retry-after")?;
    if let Some(seconds) = number(value) {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let wait = date.duration_since(now).ok()?;
    (!wait.is_zero()).then_some(wait)
}

/// Some servers send fractions of a second, which the standard does not know.
fn number(text: &str) -> Option<f64> {
    text.parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number > 0.0)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn wait(headers: &[(&'static str, &'static str)]) -> Option<Duration> {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap();
        retry_after(&headers, now)
    }

    #[test]
    fn every_form() {
        assert_eq!(wait(&[]), None);
        assert_eq!(
            wait(&[("retry-after", "20")]),
            Some(Duration::from_secs(20))
        );
        assert_eq!(
            wait(&[("retry-after", "0.5")]),
            Some(Duration::from_millis(500))
        );
        assert_eq!(
            wait(&[("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT")]),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            wait(&[("retry-after", "20"), ("retry-after-ms", "1234")]),
            Some(Duration::from_millis(1234))
        );
        assert_eq!(
            wait(&[("retry-after", "3"), ("retry-after-ms", "soon")]),
            Some(Duration::from_secs(3))
        );
        assert_eq!(
            wait(&[("retry-after", "3"), ("retry-after-ms", "0")]),
            Some(Duration::from_secs(3))
        );
        let (now, past) = (
            "Wed, 21 Oct 2026 07:28:00 GMT",
            "Wed, 21 Oct 2020 07:28:30 GMT",
        );
        for nothing in ["0", "0.0", now, past] {
            assert_eq!(wait(&[("retry-after", nothing)]), None, "{nothing}");
        }
        for nonsense in ["", "-1", "NaN", "inf", "1e300", "tomorrow"] {
            assert_eq!(wait(&[("retry-after", nonsense)]), None, "{nonsense}");
        }
    }
}
