//! What comes back: the events of one answer, and the queue in which a decoder leaves them.

use std::collections::VecDeque;
use std::ops::Range;

/// One event of an answer. Texts borrow from the stream's buffer until the next event is asked for.
///
/// The order of a complete answer: [`Start`](Event::Start) first, then any of text, reasoning, tool calls, citations and
/// [`Continued`](Event::Continued), then [`Usage`](Event::Usage) if the provider told it, and [`Finish`](Event::Finish) last, exactly once.
/// An answer that does not get to `Finish` ends in an error instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The provider has begun.
    Start {
        /// The provider's id of this answer.
        id: Option<&'a str>,
        /// The model that answers; often more exact than the one asked for.
        model: Option<&'a str>,
    },
    /// A piece of the answer. Never empty.
    Text(&'a str),
    /// A piece of the model's thinking.
    Reasoning {
        /// The thought; empty when only a signature comes.
        text: &'a str,
        /// The provider's proof, to be handed back in the next turn.
        signature: Option<&'a str>,
    },
    /// A thought that the provider has encrypted, whole, to be handed back in the next turn.
    RedactedReasoning(&'a str),
    /// A piece of a tool call.
    ToolCall(ToolCallDelta<'a>),
    /// A source that the answer rests on.
    Citation(Citation<'a>),
    /// The answer broke off, and another provider goes on with it from here. Only from a [`Pool`](crate::Pool), where the
    /// plan allows it. A thought that was under way has ended.
    Continued {
        /// Who goes on.
        provider: &'a str,
        /// The model that goes on.
        model: &'a str,
        /// That provider's id of its part.
        id: Option<&'a str>,
        /// The bytes of text, in UTF-8, that stand before this.
        text_bytes: u64,
    },
    /// The tokens of the whole answer. At most once.
    Usage(Usage),
    /// The answer is complete.
    Finish(FinishReason),
}

/// A piece of a tool call. The first piece of an index carries its id and name, later ones its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToolCallDelta<'a> {
    /// Which of the answer's tool calls this belongs to, from 0.
    pub index: u32,
    /// The provider's id of the call.
    pub id: Option<&'a str>,
    /// The tool's name.
    pub name: Option<&'a str>,
    /// The next piece of the arguments' JSON text; may be empty.
    pub arguments: &'a str,
    /// The provider's proof of the thought behind the call, to be handed back in the next turn.
    pub signature: Option<&'a str>,
}

/// A source that an answer rests on. At least one of its fields is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Citation<'a> {
    /// Its address; a document that came with the request has none.
    pub url: Option<&'a str>,
    /// Its title, if the provider gives one.
    pub title: Option<&'a str>,
    /// The words of the source that are meant, if the provider gives them.
    pub quote: Option<&'a str>,
}

/// Tokens of one answer, as the provider counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub input_tokens: u64,
    /// Tokens generated, reasoning included where the provider counts it in.
    pub output_tokens: u64,
    /// The part of `input_tokens` that came from the provider's cache.
    pub cached_input_tokens: u64,
    /// The part of `input_tokens` that was written to the provider's cache, where that is told.
    pub cache_write_tokens: u64,
    /// Tokens of thinking.
    pub reasoning_tokens: u64,
}

impl std::ops::Add for Usage {
    type Output = Self;

    /// The tokens of both. What does not fit into 64 bits is beyond belief anyway.
    fn add(self, other: Self) -> Self {
        let sum = |of: fn(&Self) -> u64| of(&self).saturating_add(of(&other));
        Self {
            input_tokens: sum(|usage| usage.input_tokens),
            output_tokens: sum(|usage| usage.output_tokens),
            cached_input_tokens: sum(|usage| usage.cached_input_tokens),
            cache_write_tokens: sum(|usage| usage.cache_write_tokens),
            reasoning_tokens: sum(|usage| usage.reasoning_tokens),
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model was done, or wrote a stop text.
    Stop,
    /// The limit on tokens, or the context, was reached.
    Length,
    /// The model wants tools called.
    ToolCalls,
    /// The provider's filter cut the answer.
    ContentFilter,
    /// The model refused. Its words came as text.
    Refusal,
    /// The provider ended properly, with a reason unknown to us or with none.
    Unknown,
}

/// Events on their way from a decoder to the reader.
///
/// Texts are kept in one buffer and events as ranges of it; both keep their capacity, so a queue in steady state
/// allocates nothing. The buffer starts anew with the first push into an empty queue.
#[derive(Clone, Debug, Default)]
pub struct EventQueue {
    text: String,
    events: VecDeque<Stored>,
}

#[derive(Clone, Debug)]
enum Stored {
    Start {
        id: Option<Range<usize>>,
        model: Option<Range<usize>>,
    },
    Text(Range<usize>),
    Reasoning {
        text: Range<usize>,
        signature: Option<Range<usize>>,
    },
    RedactedReasoning(Range<usize>),
    ToolCall {
        index: u32,
        id: Option<Range<usize>>,
        name: Option<Range<usize>>,
        arguments: Range<usize>,
        signature: Option<Range<usize>>,
    },
    Citation {
        url: Option<Range<usize>>,
        title: Option<Range<usize>>,
        quote: Option<Range<usize>>,
    },
    Continued {
        provider: Range<usize>,
        model: Range<usize>,
        id: Option<Range<usize>>,
        text_bytes: u64,
    },
    Usage(Usage),
    Finish(FinishReason),
}

impl EventQueue {
    /// Copies `event` in.
    pub fn push(&mut self, event: Event<'_>) {
        if self.events.is_empty() {
            self.text.clear();
        }
        let stored = match event {
            Event::Start { id, model } => Stored::Start {
                id: self.keep_some(id),
                model: self.keep_some(model),
            },
            Event::Text(text) => Stored::Text(self.keep(text)),
            Event::Reasoning { text, signature } => Stored::Reasoning {
                text: self.keep(text),
                signature: self.keep_some(signature),
            },
            Event::ToolCall(ToolCallDelta {
                index,
                id,
                name,
                arguments,
                signature,
            }) => Stored::ToolCall {
                index,
                id: self.keep_some(id),
                name: self.keep_some(name),
                arguments: self.keep(arguments),
                signature: self.keep_some(signature),
            },
            Event::RedactedReasoning(data) => Stored::RedactedReasoning(self.keep(data)),
            Event::Citation(Citation { url, title, quote }) => Stored::Citation {
                url: self.keep_some(url),
                title: self.keep_some(title),
                quote: self.keep_some(quote),
            },
            Event::Continued {
                provider,
                model,
                id,
                text_bytes,
            } => Stored::Continued {
                provider: self.keep(provider),
                model: self.keep(model),
                id: self.keep_some(id),
                text_bytes,
            },
            Event::Usage(usage) => Stored::Usage(usage),
            Event::Finish(reason) => Stored::Finish(reason),
        };
        self.events.push_back(stored);
    }

    /// The oldest event.
    pub fn pop(&mut self) -> Option<Event<'_>> {
        let stored = self.events.pop_front()?;
        Some(stored.event(&self.text))
    }

    /// The event so many places behind the oldest, which stays.
    pub(crate) fn get(&self, at: usize) -> Option<Event<'_>> {
        Some(self.events.get(at)?.event(&self.text))
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// The memory that what waits takes, in bytes and about.
    pub(crate) fn size(&self) -> usize {
        self.text.len() + self.events.len() * size_of::<Stored>()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    fn keep(&mut self, text: &str) -> Range<usize> {
        let start = self.text.len();
        self.text.push_str(text);
        start..self.text.len()
    }

    fn keep_some(&mut self, text: Option<&str>) -> Option<Range<usize>> {
        text.map(|text| self.keep(text))
    }
}

impl Stored {
    fn event<'a>(&self, text: &'a str) -> Event<'a> {
        let whole = |range: &Range<usize>| &text[range.clone()];
        let some = |range: &Option<Range<usize>>| range.as_ref().map(whole);
        match self {
            Self::Start { id, model } => Event::Start {
                id: some(id),
                model: some(model),
            },
            Self::Text(range) => Event::Text(whole(range)),
            Self::Reasoning {
                text: range,
                signature,
            } => Event::Reasoning {
                text: whole(range),
                signature: some(signature),
            },
            Self::ToolCall {
                index,
                id,
                name,
                arguments,
                signature,
            } => Event::ToolCall(ToolCallDelta {
                index: *index,
                id: some(id),
                name: some(name),
                arguments: whole(arguments),
                signature: some(signature),
            }),
            Self::RedactedReasoning(range) => Event::RedactedReasoning(whole(range)),
            Self::Citation { url, title, quote } => Event::Citation(Citation {
                url: some(url),
                title: some(title),
                quote: some(quote),
            }),
            Self::Continued {
                provider,
                model,
                id,
                text_bytes,
            } => Event::Continued {
                provider: whole(provider),
                model: whole(model),
                id: some(id),
                text_bytes: *text_bytes,
            },
            Self::Usage(usage) => Event::Usage(*usage),
            Self::Finish(reason) => Event::Finish(*reason),
        }
    }
}
