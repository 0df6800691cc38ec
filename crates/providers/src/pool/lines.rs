//! The lines in which a request waits: in that of each target that was busy when it was its turn, for whoever has room first.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use tokio::time::Instant;

use super::Target;
use super::member::{Call, Demand, Refused, Waiting};
use super::trail::Trail;

/// Dropping it leaves all of them.
pub(super) struct Lines<'a> {
    places: Vec<(&'a Target, Place)>,
    since: Instant,
}

enum Place {
    InLine(Waiting),
    /// There was none in that line.
    Refused(Refused),
}

impl<'a> Lines<'a> {
    /// Gets a place in the line of each of `busy`, with whether asking it is a retry.
    pub(super) fn join(
        busy: impl IntoIterator<Item = (&'a Target, bool)>,
        demand: &Demand,
    ) -> Self {
        let now = Instant::now();
        let place = |(target, is_retry): (&'a Target, bool)| {
            let place = target.member.wait(&target.model, is_retry, demand, now);
            (
                target,
                match place {
                    Ok(line) => Place::InLine(line),
                    Err(refused) => Place::Refused(refused),
                },
            )
        };
        Self {
            places: busy.into_iter().map(place).collect(),
            since: now,
        }
    }

    /// The next one that has room, with its call, or for which there is no more use in waiting; `None` when all have had
    /// their turn.
    pub(super) async fn next(
        &mut self,
        trail: &Trail,
    ) -> Option<(&'a Target, Result<Call, Refused>)> {
        if self.places.is_empty() {
            return None;
        }
        let places = &mut self.places;
        let (target, turn) = poll_fn(|cx| {
            let mut all = places.iter_mut().enumerate();
            let ready = all.find_map(|(at, (_, place))| match place {
                Place::Refused(refused) => Some((at, Err(*refused))),
                Place::InLine(line) => match Pin::new(line).poll(cx) {
                    Poll::Ready(turn) => Some((at, turn)),
                    Poll::Pending => None,
                },
            });
            match ready {
                Some((at, turn)) => Poll::Ready((places.remove(at).0, turn)),
                None => Poll::Pending,
            }
        })
        .await;
        let took = self.since.elapsed();
        trail.waited(target.member.name(), &target.model, took);
        Some((target, turn))
    }
}
