//! Going on with an answer that broke off, where the route allows it.
//!
//! The next target is given the conversation, what was said so far as the assistant's turn, and a user's turn that asks it
//! to go on where that ends. No format takes the beginning of an answer from all of its models: Anthropic's newer ones
//! refuse a conversation that ends with the assistant's turn, and of the others most take such a turn for a finished one and
//! begin anew. Being asked in words works for all of them, as well as the model follows.
//!
//! The client is told: [`Event::Continued`] stands where another goes on. What was said is not said again; where the
//! model repeats the end of it, word for word, the repetition is left out ([`Seam`]).
//!
//! Some answers cannot be gone on with, and their error stands: once a tool call has begun (half of its arguments are of no
//! use, and a whole one must not be made twice), once a thought came signed or encrypted (it is the one provider's own, and
//! what follows it must be, too), and answers in JSON (whoever holds a model to a form does so from the first
//! brace).

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::Target;
use super::ask::Ask;
use super::asking::{Asking, Failure, ask, goes_on};
use super::lines::Lines;
use super::member::Demand;
use super::seam::Seam;
use super::stream::ended_early;
use super::trail::{Purpose, Trail};
use crate::chat::{ChatRequest, Message};
use crate::error::{ErrorKind, Phase, ProviderError};
use crate::event::{Event, EventQueue, Usage};
use crate::provider::{BoxFuture, ChatStream, EventStream};

/// How often one answer is gone on with.
const MOST: u32 = 3;
/// An answer that is longer, in bytes, is not gone on with: all of it would have to be sent.
const LONGEST: usize = 1 << 20;
/// So many bytes of text are about one token.
const BYTES_PER_TOKEN: usize = 4;

const GO_ON: &str = "Your answer above was cut off in the middle by a fault of the connection. Go on with it from exactly \
    the character after its last one. Write only what comes next: repeat nothing of it, begin with no introduction, do not \
    mention the interruption, and open no code block anew that is still open. If it was complete, write nothing.";

/// Whether what `request` asks for could be gone on with.
pub(super) fn is_possible(request: &ChatRequest) -> bool {
    request.stream && request.response_format.is_none()
}

/// `stream`, which `current` of `order` gives, gone on with by the others where it breaks off, and then by itself.
pub(super) fn over(
    stream: ChatStream,
    current: &Target,
    mut order: VecDeque<Target>,
    request: ChatRequest,
    demand: Demand,
    trail: &Trail,
) -> ChatStream {
    if let Some(at) = position(&order, current) {
        let next = (at + 1) % order.len();
        order.rotate_left(next);
    }
    ChatStream::new(Continued {
        source: Source::Reading(stream),
        answer: Joined::default(),
        error: None,
        resume: Some(Box::new(Resume {
            targets: order,
            turns: request.messages.len(),
            max_tokens: request.max_tokens,
            request,
            demand,
            trail: trail.clone(),
            left: MOST,
        })),
    })
}

/// Where `wanted` stands.
fn position(targets: &VecDeque<Target>, wanted: &Target) -> Option<usize> {
    targets.iter().position(|target| {
        target.model == wanted.model && target.member.name() == wanted.member.name()
    })
}

/// Another may be asked, unless there is no time left: that says more than why the answer broke off.
fn is_in_time(failure: Failure) -> Result<(), Option<ProviderError>> {
    match failure.error.kind {
        ErrorKind::TimedOut(Phase::Deadline) => Err(Some(failure.error)),
        _ => Ok(()),
    }
}

/// All that it takes to ask again.
struct Resume {
    /// Whoever answers is the last; before it the others in the order in which they are asked.
    targets: VecDeque<Target>,
    request: ChatRequest,
    /// The turns of the request as it came.
    turns: usize,
    max_tokens: Option<u32>,
    /// What it asks of the limits, until when, and where its client's tokens are put down.
    demand: Demand,
    trail: Trail,
    left: u32,
}

/// Who goes on; or nobody, and why where that says more than why the answer broke off.
type Resumed = Result<ChatStream, Option<ProviderError>>;

impl Resume {
    /// Has somebody go on after `said`, and gives both back.
    async fn run(mut self: Box<Self>, said: String) -> (Box<Self>, String, Resumed) {
        self.write_request(&said);
        self.demand.cost = self.request.cost();
        let resumed = match self.ask_all().await {
            Ok((at, stream)) => {
                self.targets.rotate_left(at + 1);
                Ok(stream)
            }
            Err(error) => Err(error),
        };
        (self, said, resumed)
    }

    /// Asks the targets that have room, the one that broke off last; then whoever of the others has room first. Says
    /// which of them goes on.
    async fn ask_all(&mut self) -> Result<(usize, ChatStream), Option<ProviderError>> {
        let Self {
            targets,
            request,
            demand,
            trail,
            ..
        } = self;
        let last = targets.len().saturating_sub(1);
        let asking = |at| Asking {
            is_retry: at == last,
            demand,
            trail,
        };
        let mut busy = Vec::new();
        for (at, target) in targets.iter().enumerate() {
            target.names_model_of(request);
            match ask(target, request, asking(at), Purpose::Continuation, None).await {
                Ok(stream) => return Ok((at, stream)),
                Err(failure) if failure.busy => busy.push((target, at == last)),
                Err(failure) => is_in_time(failure)?,
            }
        }
        let mut lines = Lines::new(busy, demand);
        while let Some((target, turn)) = lines.next(trail).await {
            target.names_model_of(request);
            let at = position(targets, target).unwrap_or(last);
            match ask(
                target,
                request,
                asking(at),
                Purpose::Continuation,
                Some(turn),
            )
            .await
            {
                Ok(stream) => return Ok((at, stream)),
                Err(failure) => is_in_time(failure)?,
            }
        }
        Err(None)
    }

    fn write_request(&mut self, said: &str) {
        self.request.messages.truncate(self.turns);
        // Where nothing was said there is nothing to go on from: it is asked as the first one was.
        if said.trim().is_empty() {
            return;
        }
        self.request.messages.push(Message::assistant(said));
        self.request.messages.push(Message::user(GO_ON));
        let about = u32::try_from(said.len() / BYTES_PER_TOKEN).unwrap_or(u32::MAX);
        let left = |most: u32| most.saturating_sub(about).max(1);
        self.request.max_tokens = self.max_tokens.map(left);
    }
}

enum Source {
    Reading(ChatStream),
    /// Somebody is asked to go on. The error is that in which the answer broke off.
    Resuming(
        BoxFuture<'static, (Box<Resume>, String, Resumed)>,
        ProviderError,
    ),
    Over,
}

struct Continued {
    source: Source,
    answer: Joined,
    /// What the answer ends in, after its events.
    error: Option<ProviderError>,
    /// Lent to the future while somebody is asked.
    resume: Option<Box<Resume>>,
}

impl Continued {
    /// The answer broke off: somebody goes on with it, or it ends in `error`.
    fn broke_off(&mut self, error: ProviderError) {
        // Before the next one is asked: this gives back what the call had.
        self.source = Source::Over;
        let may_go_on = self.answer.holds && !self.answer.finished && goes_on(error.kind);
        let resume = self.resume.take_if(|resume| resume.left > 0 && may_go_on);
        let Some(mut resume) = resume else {
            self.error = Some(error);
            return;
        };
        resume.left -= 1;
        // What was held back was never given, so it need not be said again.
        self.answer.seam = None;
        let said = std::mem::take(&mut self.answer.said);
        self.source = Source::Resuming(Box::pin(resume.run(said)), error);
    }

    fn resumed(&mut self, resume: Box<Resume>, said: String, resumed: Resumed) {
        let source = std::mem::replace(&mut self.source, Source::Over);
        self.answer.said = said;
        match (resumed, source, resume.targets.back()) {
            (Ok(stream), _, Some(target)) => {
                self.answer.goes_on(target);
                self.source = Source::Reading(stream);
            }
            (Err(Some(error)), ..) | (_, Source::Resuming(_, error), _) => self.error = Some(error),
            _ => {}
        }
        self.resume = Some(resume);
    }
}

impl EventStream for Continued {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.answer.queue.is_empty() && self.error.is_none() {
            match &mut self.source {
                Source::Over => break,
                Source::Reading(stream) => {
                    ready!(stream.poll_ready(cx));
                    match stream.take() {
                        Some(Ok(event)) => self.answer.hear(event),
                        Some(Err(error)) => self.broke_off(error),
                        None if self.answer.finished => self.source = Source::Over,
                        None => {
                            let resume = self.resume.as_ref();
                            let target = resume.and_then(|resume| resume.targets.back());
                            let name = target.map(|target| Arc::clone(target.member.name()));
                            self.broke_off(ended_early(name.as_deref().unwrap_or_default()));
                        }
                    }
                }
                Source::Resuming(future, _) => {
                    let (resume, said, resumed) = ready!(future.as_mut().poll(cx));
                    self.resumed(resume, said, resumed);
                }
            }
        }
        Poll::Ready(())
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        match self.answer.queue.pop() {
            Some(event) => Some(Ok(event)),
            None => self.error.take().map(Err),
        }
    }
}

/// The answer, of one part or several.
struct Joined {
    /// What is to be given next.
    queue: EventQueue,
    /// All text that was given, while the answer can be gone on with.
    said: String,
    /// Whether it can be.
    holds: bool,
    finished: bool,
    /// Who goes on, until that is told.
    mark: Option<(Arc<str>, Arc<str>)>,
    /// Between what was said and what comes now, until they are joined.
    seam: Option<Seam>,
    /// The tokens of all parts that told them.
    used: Option<Usage>,
}

impl Default for Joined {
    fn default() -> Self {
        Self {
            queue: EventQueue::default(),
            said: String::new(),
            holds: true,
            finished: false,
            mark: None,
            seam: None,
            used: None,
        }
    }
}

impl Joined {
    /// What comes now is from `target`.
    fn goes_on(&mut self, target: &Target) {
        let (name, model) = (target.member.name(), &target.model);
        self.mark = Some((Arc::clone(name), Arc::clone(model)));
        self.seam = Some(Seam::default());
    }

    /// Puts what one event of a part makes of the answer into the queue.
    fn hear(&mut self, event: Event<'_>) {
        if let Some((provider, asked)) = self.mark.take() {
            let (id, model) = match event {
                Event::Start { id, model } => (id, model),
                _ => (None, None),
            };
            self.queue.push(Event::Continued {
                provider: &provider,
                model: model.unwrap_or(&asked),
                id,
                text_bytes: self.said.len() as u64,
            });
            if let Event::Start { .. } = event {
                return;
            }
        }
        if let Event::Text(text) = event {
            match &mut self.seam {
                None => self.say(text),
                Some(seam) => {
                    if let Some(new) = seam.push(&self.said, text) {
                        self.joined(&new);
                    }
                }
            }
            return;
        }
        // The text that is held back stands before this.
        if let Some(seam) = self.seam.take_if(|seam| !seam.is_empty()) {
            let new = seam.end(&self.said);
            self.joined(&new);
        }
        match event {
            Event::Usage(usage) => {
                self.used = Some(match self.used {
                    Some(before) => before + usage,
                    None => usage,
                });
                return;
            }
            Event::Finish(_) => {
                self.finished = true;
                if let Some(used) = self.used {
                    self.queue.push(Event::Usage(used));
                }
            }
            Event::ToolCall(_)
            | Event::RedactedReasoning(_)
            | Event::Reasoning {
                signature: Some(_), ..
            } => self.gives_up(),
            _ => {}
        }
        self.queue.push(event);
    }

    /// It is clear now what is new of the next part: this, so far.
    fn joined(&mut self, new: &str) {
        self.seam = None;
        self.say(new);
        self.forget_if_useless();
    }

    fn say(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.queue.push(Event::Text(text));
        if self.said.len() + text.len() > LONGEST {
            self.gives_up();
        } else if self.holds {
            self.said.push_str(text);
        }
    }

    /// It cannot be gone on with any more.
    fn gives_up(&mut self) {
        self.holds = false;
        self.forget_if_useless();
    }

    /// What was said is needed to go on from, and where the next part is joined to it.
    fn forget_if_useless(&mut self) {
        if !self.holds && self.seam.is_none() {
            self.said = String::new();
        }
    }
}
