//! What headers say is left of a provider's rate limits.
//!
//! | who | headers | reset |
//! |---|---|---|
//! | [OpenAI](https://platform.openai.com/docs/guides/rate-limits), Azure, [Groq](https://console.groq.com/docs/rate-limits), xAI | `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` | `6m0s`, `12ms`, `2m59.56s`; some say seconds |
//! | [Anthropic](https://docs.anthropic.com/en/api/rate-limits) | `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}` | RFC 3339 |
//! | Cerebras, `SambaNova` | `x-ratelimit-{limit,remaining,reset}-{requests,tokens}-{minute,hour,day}` | seconds with a fraction, or as OpenAI |
//! | Mistral | `x-ratelimit-{limit,remaining}-{req,tokens}-minute`, `x-ratelimitbysize-{limit,remaining}-minute` | none |
//! | OpenRouter, Together | `x-ratelimit-{limit,remaining,reset}` of requests, `x-tokenlimit-{limit,remaining,reset}` | milliseconds of the epoch; seconds |
//!
//! Whoever serves the same names is read in the same way.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;

use crate::rate_limit::{Counted, RateLimits, RateWindow};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The parts of a family's names before and after `limit`, `remaining` and `reset`, what is counted, and the length of the
/// period: how long a reset takes at most where none is told.
const FAMILIES: &[(&str, &str, Counted, Duration)] = &[
    ("x-ratelimit-", "-requests", Counted::Requests, MINUTE),
    ("x-ratelimit-", "-tokens", Counted::Tokens, MINUTE),
    (
        "x-ratelimit-",
        "-requests-minute",
        Counted::Requests,
        MINUTE,
    ),
    ("x-ratelimit-", "-req-minute", Counted::Requests, MINUTE),
    ("x-ratelimit-", "-tokens-minute", Counted::Tokens, MINUTE),
    ("x-ratelimitbysize-", "-minute", Counted::Tokens, MINUTE),
    ("x-ratelimit-", "-requests-hour", Counted::Requests, HOUR),
    ("x-ratelimit-", "-tokens-hour", Counted::Tokens, HOUR),
    ("x-ratelimit-", "-requests-day", Counted::Requests, DAY),
    ("x-ratelimit-", "-tokens-day", Counted::Tokens, DAY),
    ("x-ratelimit-", "", Counted::Requests, MINUTE),
    ("x-tokenlimit-", "", Counted::Tokens, MINUTE),
    (
        "anthropic-ratelimit-requests-",
        "",
        Counted::Requests,
        MINUTE,
    ),
    ("anthropic-ratelimit-tokens-", "", Counted::Tokens, MINUTE),
    (
        "anthropic-ratelimit-input-tokens-",
        "",
        Counted::InputTokens,
        MINUTE,
    ),
    (
        "anthropic-ratelimit-output-tokens-",
        "",
        Counted::OutputTokens,
        MINUTE,
    ),
];

/// Every window that `headers` tell what is left of. Nonsense is left out.
pub(crate) fn rate_limits(headers: &HeaderMap, now: SystemTime) -> RateLimits {
    // Most servers tell of none.
    let tells = |name: &str| name.contains("ratelimit") || name.contains("tokenlimit");
    if !headers.keys().any(|name| tells(name.as_str())) {
        return RateLimits::default();
    }
    let windows = FAMILIES
        .iter()
        .filter_map(|(before, after, counts, period)| {
            let text = |what: &str| {
                let value = headers.get(format!("{before}{what}{after}"))?;
                value.to_str().ok().map(str::trim)
            };
            Some(RateWindow {
                counts: *counts,
                limit: text("limit").and_then(whole),
                remaining: text("remaining").and_then(whole)?,
                reset: match text("reset") {
                    Some(told) => reset(told, now)?,
                    None => *period,
                },
            })
        });
    windows.collect()
}

/// A whole number; some send `99.0`, and less than nothing is nothing.
fn whole(text: &str) -> Option<u64> {
    let number: f64 = text.parse().ok()?;
    (number.is_finite() && number < 1e18).then_some(number.max(0.0) as u64)
}

/// How long until the reset, in any of the forms.
fn reset(text: &str, now: SystemTime) -> Option<Duration> {
    let Ok(number) = text.parse::<f64>() else {
        return span(text).or_else(|| Some(time(text)?.duration_since(now).unwrap_or_default()));
    };
    let at = match number {
        // Nobody's window is thirty years long: these are times.
        number if number >= 1e11 => number / 1e3,
        number if number >= 1e9 => number,
        number => return Duration::try_from_secs_f64(number).ok(),
    };
    let at = UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(at).ok()?)?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// A span as Go writes it: `1h2m3.5s`, `6m0s`, `12ms`.
fn span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        seconds += number
            * match &rest[..end] {
                "d" => 86_400.0,
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// A time of [RFC 3339](https://www.rfc-editor.org/rfc/rfc3339), such as `2026-10-21T07:28:30Z`.
fn time(text: &str) -> Option<SystemTime> {
    use aws_smithy_types::date_time::{DateTime, Format};
    let time = DateTime::from_str(text, Format::DateTimeWithOffset).ok()?;
    time.try_into().ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn read(headers: &[(&'static str, &'static str)]) -> RateLimits {
        let headers = headers.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap();
        rate_limits(&headers.collect(), now)
    }

    fn window(counts: Counted, limit: Option<u64>, remaining: u64, reset: f64) -> RateWindow {
        RateWindow {
            counts,
            limit,
            remaining,
            reset: Duration::from_secs_f64(reset),
        }
    }

    #[test]
    fn each_providers_form() {
        assert_eq!(*read(&[("content-type", "text/event-stream")]), []);
        let openai = read(&[
            ("x-ratelimit-limit-requests", "5000"),
            ("x-ratelimit-remaining-requests", "4999"),
            ("x-ratelimit-reset-requests", "12ms"),
            ("x-ratelimit-limit-tokens", "160000"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "6m0s"),
        ]);
        assert_eq!(
            *openai,
            [
                window(Counted::Requests, Some(5000), 4999, 0.012),
                window(Counted::Tokens, Some(160_000), 0, 360.0)
            ]
        );
        let anthropic = read(&[
            ("anthropic-ratelimit-requests-limit", "1000"),
            ("anthropic-ratelimit-requests-remaining", "999"),
            ("anthropic-ratelimit-requests-reset", "2026-10-21T07:27:59Z"),
            ("anthropic-ratelimit-input-tokens-limit", "80000"),
            ("anthropic-ratelimit-input-tokens-remaining", "1000"),
            (
                "anthropic-ratelimit-input-tokens-reset",
                "2026-10-21T09:28:30+02:00",
            ),
            ("anthropic-ratelimit-output-tokens-remaining", "0"),
            (
                "anthropic-ratelimit-output-tokens-reset",
                "2026-10-21T07:28:01.5Z",
            ),
        ]);
        assert_eq!(
            *anthropic,
            [
                window(Counted::Requests, Some(1000), 999, 0.0),
                window(Counted::InputTokens, Some(80_000), 1000, 30.0),
                window(Counted::OutputTokens, None, 0, 1.5)
            ]
        );
        let cerebras = read(&[
            ("x-ratelimit-limit-requests-day", "14400"),
            ("x-ratelimit-remaining-requests-day", "14399"),
            ("x-ratelimit-reset-requests-day", "33011.5"),
            ("x-ratelimit-remaining-tokens-minute", "59000"),
            ("x-ratelimit-reset-tokens-minute", "11.25"),
        ]);
        assert_eq!(
            *cerebras,
            [
                window(Counted::Tokens, None, 59_000, 11.25),
                window(Counted::Requests, Some(14_400), 14_399, 33_011.5)
            ]
        );
        let mistral = read(&[
            ("x-ratelimit-remaining-req-minute", "4"),
            ("x-ratelimitbysize-limit-minute", "500000"),
            ("x-ratelimitbysize-remaining-minute", "0"),
        ]);
        assert_eq!(
            *mistral,
            [
                window(Counted::Requests, None, 4, 60.0),
                window(Counted::Tokens, Some(500_000), 0, 60.0)
            ]
        );
        let openrouter = read(&[
            ("x-ratelimit-limit", "20"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1792567710000"),
        ]);
        assert_eq!(*openrouter, [window(Counted::Requests, Some(20), 0, 30.0)]);
    }

    #[test]
    fn nonsense_is_no_limit() {
        for reset in [
            "soon",
            "1e22",
            "-1",
            "NaN",
            "1x",
            "s",
            "9e99",
            "",
            "2026-10-21",
        ] {
            let read = read(&[
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", reset),
            ]);
            assert_eq!(*read, [], "{reset}");
        }
        for left in ["none", "", "NaN", "1e99", "1e22"] {
            assert_eq!(*read(&[("x-ratelimit-remaining-requests", left)]), []);
        }
        let negative = read(&[("x-ratelimit-remaining-tokens", "-12.0")]);
        assert_eq!(*negative, [window(Counted::Tokens, None, 0, 60.0)]);
    }

    proptest! {
        #[test]
        fn nothing_that_a_header_says_is_too_much(text in "[0-9.eE+:TZ dhmsuµn-]{0,30}|[ -~]{0,20}") {
            reset(&text, UNIX_EPOCH + Duration::from_secs(1_792_567_680));
            whole(&text);
        }
    }

    #[test]
    fn spans() {
        for (text, seconds) in [
            ("2m59.56s", 179.56),
            ("1h0m0s", 3600.0),
            ("1d2h", 93_600.0),
            ("7.66s", 7.66),
            ("250us", 0.00025),
        ] {
            assert_eq!(span(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
    }
}
