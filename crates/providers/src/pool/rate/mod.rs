//! Requests and tokens in a minute: what a request costs, and what is left.

mod bucket;
pub(super) mod client;
mod learned;

use std::time::Duration;

use tokio::time::Instant;

use super::limits::{Limit, LimitStatus, Measure, Rate, Scope};
use crate::chat::{ChatRequest, Content, ResponseFormat};
use bucket::Bucket;
pub(super) use learned::Learned;

/// Text has about so many bytes a token: English a little more, code and other scripts less.
const BYTES_PER_TOKEN: usize = 4;
/// What a message's frame costs.
const TOKENS_PER_MESSAGE: u64 = 4;
/// About what an image of ordinary size costs.
const TOKENS_PER_IMAGE: u64 = 1000;
/// The answer that is expected where the request sets no bound.
const USUAL_ANSWER: u64 = 512;

/// What a request costs, in tokens: an estimate until its answer is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) input: u64,
    pub(super) output: u64,
}

impl Cost {
    /// What `request` will probably cost: its texts by their size, and all of the answer that it allows.
    pub(super) fn of(request: &ChatRequest) -> Self {
        let tokens = |bytes: usize| bytes.div_ceil(BYTES_PER_TOKEN) as u64;
        let content = |content: &Content| match content {
            Content::Text(text) => tokens(text.len()),
            Content::Reasoning { text, .. } => tokens(text.len()),
            Content::RedactedReasoning(data) => tokens(data.len()),
            Content::Image(_) => TOKENS_PER_IMAGE,
            Content::CachePoint => 0,
        };
        let system = request.system.iter();
        let mut input: u64 = system
            .map(|text| tokens(text.len()) + TOKENS_PER_MESSAGE)
            .sum();
        for message in &request.messages {
            let calls = message.tool_calls.iter();
            input += TOKENS_PER_MESSAGE
                + message.content.iter().map(content).sum::<u64>()
                + calls
                    .map(|call| tokens(call.name.len() + call.arguments.len()))
                    .sum::<u64>();
        }
        for tool in &request.tools {
            let described = tool.description.as_ref().map_or(0, String::len);
            let parameters = tool.parameters.as_ref().map_or(0, |json| json.get().len());
            input += tokens(tool.name.len() + described + parameters);
        }
        if let Some(ResponseFormat::JsonSchema { schema, .. }) = &request.response_format {
            input += tokens(schema.get().len());
        }
        Self {
            input,
            output: request.max_tokens.map_or(USUAL_ANSWER, u64::from),
        }
    }

    /// What vectors of `texts` will probably cost.
    pub(super) fn of_texts(texts: &[String]) -> Self {
        let tokens = |text: &String| text.len().div_ceil(BYTES_PER_TOKEN) as u64;
        Self {
            input: texts.iter().map(tokens).sum(),
            output: 0,
        }
    }

    /// What was said so far costs about so much.
    pub(super) fn said(self, bytes: usize) -> Self {
        Self {
            output: bytes.div_ceil(BYTES_PER_TOKEN) as u64,
            ..self
        }
    }

    pub(super) fn tokens(self) -> u64 {
        self.input.saturating_add(self.output)
    }

    fn of_measure(self, measure: Measure) -> f64 {
        let amount = match measure {
            Measure::Requests => 1,
            Measure::InputTokens => self.input,
            Measure::OutputTokens => self.output,
            Measure::Tokens => self.tokens(),
            Measure::InFlight => 0,
        };
        float(amount)
    }
}

#[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53")]
fn float(number: u64) -> f64 {
    number as f64
}

/// A limit that is reached, and when there is room again if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy {
    pub(super) limit: Limit,
    pub(super) until: Option<Instant>,
}

/// A configured [`Rate`], with what is left of it.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    scope: Scope,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Meter {
    pub(super) fn new(scope: Scope, rate: Rate, now: Instant) -> Self {
        let bucket = |limit: Option<u32>| limit.map(|limit| Bucket::new(limit, now));
        Self {
            scope,
            requests: bucket(rate.requests_per_minute),
            tokens: bucket(rate.tokens_per_minute),
        }
    }

    fn buckets(&self) -> impl Iterator<Item = (Measure, &Bucket)> {
        let requests = self.requests.iter();
        let requests = requests.map(|bucket| (Measure::Requests, bucket));
        let tokens = self.tokens.iter();
        requests.chain(tokens.map(|bucket| (Measure::Tokens, bucket)))
    }

    /// What keeps a request of this cost waiting for longest.
    pub(super) fn busy(&self, cost: Cost, now: Instant) -> Option<Busy> {
        let waits = self.buckets().filter_map(|(measure, bucket)| {
            let until = bucket.free_at(cost.of_measure(measure), now)?;
            let limit = Limit {
                scope: self.scope,
                measure,
            };
            Some((until, limit))
        });
        let longest = waits.max_by_key(|(until, _)| *until);
        longest.map(|(until, limit)| Busy {
            limit,
            until: Some(until),
        })
    }

    pub(super) fn take(&mut self, cost: Cost, now: Instant) {
        if let Some(requests) = &mut self.requests {
            requests.take(1.0, now);
        }
        if let Some(tokens) = &mut self.tokens {
            tokens.take(float(cost.tokens()), now);
        }
    }

    /// The request was never sent.
    pub(super) fn undo(&mut self, cost: Cost, now: Instant) {
        if let Some(requests) = &mut self.requests {
            requests.take(-1.0, now);
        }
        self.correct(cost, Cost::default(), now);
    }

    /// It cost `actual` tokens rather than what was taken.
    pub(super) fn correct(&mut self, taken: Cost, actual: Cost, now: Instant) {
        if let Some(tokens) = &mut self.tokens {
            tokens.correct(float(taken.tokens()), float(actual.tokens()), now);
        }
    }

    /// What is left of it.
    pub(super) fn status(&self, now: Instant) -> impl Iterator<Item = LimitStatus> {
        self.buckets().map(move |(measure, bucket)| LimitStatus {
            limit: Limit {
                scope: self.scope,
                measure,
            },
            model: None,
            key: None,
            most: Some(bucket.most() as u64),
            left: bucket.left(now).max(0.0) as u64,
            reset: Some(bucket.full_in(now)),
            learned: false,
        })
    }

    /// Whether it would be the same if it were made anew now.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.buckets()
            .all(|(_, bucket)| bucket.full_in(now) == Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Message, Tool};

    #[test]
    fn a_request_is_estimated_by_its_size_and_the_answer_it_allows() {
        let mut request = ChatRequest::new("m").with(Message::user("12345678"));
        let cost = Cost::of(&request);
        assert_eq!((cost.input, cost.output), (6, USUAL_ANSWER));
        request.max_tokens = Some(9000);
        request.system = Some("1234".into());
        request.tools.push(Tool {
            name: "add".into(),
            description: Some("12345".into()),
            parameters: None,
            strict: None,
        });
        assert_eq!(Cost::of(&request).tokens(), 6 + 5 + 2 + 9000);
        assert_eq!(Cost::of(&request).said(10).output, 3);
    }

    #[test]
    fn the_longest_wait_counts() {
        let now = Instant::now();
        let rate = Rate {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(600),
        };
        let mut meter = Meter::new(Scope::Provider, rate, now);
        let cost = Cost {
            input: 500,
            output: 100,
        };
        assert_eq!(meter.busy(cost, now), None);
        meter.take(cost, now);
        let busy = meter.busy(cost, now).unwrap();
        assert_eq!(busy.limit.to_string(), "provider_tokens");
        assert_eq!(busy.until, Some(now + Duration::from_secs(60)));
        meter.correct(cost, Cost::default(), now);
        assert_eq!(meter.busy(cost, now), None);
        assert!(!meter.is_full(now), "the request was made");
        meter.take(cost, now);
        meter.undo(cost, now);
        let left: Vec<u64> = meter.status(now).map(|status| status.left).collect();
        assert_eq!(left, [59, 600]);
    }
}
