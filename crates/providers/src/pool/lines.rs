//! The lines in which a request waits: in that of each target that was busy when it was its turn, for whoever has room first.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::Target;
use super::member::{Call, Demand, Refused, Waiting};
use super::trail::Trail;

/// Dropping it leaves all of them.
pub(super) struct Lines<'a, 'd> {
    places: Vec<Place<'a>>,
    demand: &'d Demand,
    /// For how long so far. What asking took is no part of it.
    waited: Duration,
}

struct Place<'a> {
    target: &'a Target,
    /// Whether asking it is a retry.
    is_retry: bool,
    state: State,
}

enum State {
    /// It stands in that line when it waits next.
    Outside,
    InLine(Waiting),
    /// There was no place in that line.
    Refused(Refused),
}

impl<'a, 'd> Lines<'a, 'd> {
    /// Those of `busy`, each with whether asking it is a retry.
    pub(super) fn new(
        busy: impl IntoIterator<Item = (&'a Target, bool)>,
        demand: &'d Demand,
    ) -> Self {
        let place = |(target, is_retry)| Place {
            target,
            is_retry,
            state: State::Outside,
        };
        Self {
            places: busy.into_iter().map(place).collect(),
            demand,
            waited: Duration::ZERO,
        }
    }

    /// The next one that has room, with its call, or for which there is no more use in waiting; `None` when all have had
    /// their turn. With a call the request leaves the other lines, or it would be let in there, too, and keep others out
    /// while it is answered. If it is not, it joins them anew.
    pub(super) async fn next(
        &mut self,
        trail: &Trail,
    ) -> Option<(&'a Target, Result<Call, Refused>)> {
        if self.places.is_empty() {
            return None;
        }
        let since = Instant::now();
        self.join(since);
        let places = &mut self.places;
        let (target, turn) = poll_fn(|cx| {
            let mut all = places.iter_mut().enumerate();
            let ready = all.find_map(|(at, place)| match &mut place.state {
                State::Outside => None,
                State::Refused(refused) => Some((at, Err(*refused))),
                State::InLine(line) => match Pin::new(line).poll(cx) {
                    Poll::Ready(turn) => Some((at, turn)),
                    Poll::Pending => None,
                },
            });
            match ready {
                Some((at, turn)) => Poll::Ready((places.remove(at).target, turn)),
                None => Poll::Pending,
            }
        })
        .await;
        if turn.is_ok() {
            self.leave();
        }
        self.waited += since.elapsed();
        trail.waited(target.member.name(), &target.model, self.waited);
        Some((target, turn))
    }

    /// Gets a place in each line in which it has none.
    fn join(&mut self, now: Instant) {
        for place in &mut self.places {
            if !matches!(place.state, State::Outside) {
                continue;
            }
            let Target { member, model, .. } = place.target;
            let line = member.wait(model, place.is_retry, self.demand, self.waited, now);
            place.state = match line {
                Ok(line) => State::InLine(line),
                Err(refused) => State::Refused(refused),
            };
        }
    }

    fn leave(&mut self) {
        for place in &mut self.places {
            if matches!(place.state, State::InLine(_)) {
                place.state = State::Outside;
            }
        }
    }
}
