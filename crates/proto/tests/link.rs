//! A client's state machine against a daemon's, over a link that delays: both keep every rule, each stream gets its
//! one terminal frame, and when the traffic stops nothing is left over.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lapce_ai_proto::{
    ClientEvent, ClientState, Codec, Control, ErrorBody, ErrorCode, FIN, HEADER_LEN,
    ITEM_PREFIX_LEN, Kind, Limits, MORE, MessageType, OpenPrefix, Opening, PREFIX, Refusal,
    ServerEvent, ServerState,
};
use proptest::collection::vec;
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    max_message_size: 5000,
    max_frame_payload: 256,
    max_streams: 6,
    inline_window: 600,
};

const CODEC: Codec = Codec {
    crc: true,
    max_payload: LIMITS.max_frame_payload,
};

/// A request and how it will be answered.
#[derive(Debug, Clone)]
struct Plan {
    length: u32,
    prefix: bool,
    items: Vec<u32>,
    /// The last item goes into END.
    last_in_end: bool,
    accept: bool,
    /// A whole request is answered without being tracked, if it can be.
    at_once: bool,
    /// After so many items comes an error.
    fails_after: Option<usize>,
}

/// A piece of an item or of a request, such that each byte has its place.
fn pattern(id: u64, part: usize, from: u32, len: u32) -> Vec<u8> {
    (from..from + len)
        .map(|at| (id as u32 * 31 + part as u32 * 7 + at) as u8)
        .collect()
}

/// One request at the client.
#[derive(Debug, Default)]
struct Asking {
    plan: usize,
    sent: u32,
    whole: bool,
    unread: u32,
    items: Vec<u32>,
    item: u32,
    in_item: bool,
    cancelled: bool,
    terminals: u32,
    failed: Option<ErrorCode>,
}

/// One request at the daemon.
#[derive(Debug)]
struct Serving {
    plan: usize,
    received: u32,
    complete: bool,
    granted: bool,
    item: usize,
    offset: u32,
}

struct Link {
    plans: Vec<Plan>,
    next_plan: usize,
    client: ClientState,
    server: ServerState,
    to_server: VecDeque<Vec<u8>>,
    to_client: VecDeque<Vec<u8>>,
    asking: BTreeMap<u64, Asking>,
    serving: BTreeMap<u64, Serving>,
    /// Streams whose terminal frame has been written.
    ended: BTreeSet<u64>,
    going_away: bool,
    pings: u64,
    pongs: u64,
}

impl Link {
    fn new(plans: Vec<Plan>, window: u32) -> Self {
        Self {
            plans,
            next_plan: 0,
            client: ClientState::new(LIMITS, window),
            server: ServerState::new(LIMITS, window),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            asking: BTreeMap::new(),
            serving: BTreeMap::new(),
            ended: BTreeSet::new(),
            going_away: false,
            pings: 0,
            pongs: 0,
        }
    }

    fn client_writes(&mut self, kind: Kind, flags: u8, ty: u16, id: u64, payload: &[u8]) {
        self.to_server
            .push_back(CODEC.encode(kind, flags, ty, id, payload));
    }

    fn server_writes(&mut self, kind: Kind, flags: u8, ty: u16, id: u64, payload: &[u8]) {
        if id != 0 {
            assert!(
                !self.ended.contains(&id),
                "{kind:?} for {id} after its terminal frame"
            );
            if matches!(kind, Kind::End | Kind::Error) {
                self.ended.insert(id);
            }
        }
        self.to_client
            .push_back(CODEC.encode(kind, flags, ty, id, payload));
    }

    /// Does one thing. False: there was nothing of it to do.
    fn step(&mut self, what: u8, which: usize, amount: u32) -> bool {
        match what % 15 {
            0 => self.open(),
            1 => self.send_request(which, amount),
            2 => self.client_control(true),
            3 => self.server_control(true),
            4 | 5 => self.server_receives(),
            6 | 7 => self.client_receives(),
            8 => self.grant(which),
            9 | 10 => self.answer(which, amount),
            11 => self.take(which, amount),
            // No room for the control frame that is next.
            12 => {
                self.client_control(false);
                self.server_control(false)
            }
            // It may be quiet at any moment, and goes on afterwards.
            13 => {
                self.server.trim();
                false
            }
            _ => self.disturb(which, amount),
        }
    }

    fn open(&mut self) -> bool {
        let Some(plan) = self.plans.get(self.next_plan).cloned() else {
            return false;
        };
        match self.client.open(plan.length.into(), plan.prefix) {
            Ok(Opening { id, whole }) => {
                let prefix = OpenPrefix {
                    total_length: plan.length.into(),
                    ..OpenPrefix::default()
                };
                let ty = 0x8000 + self.next_plan as u16;
                let body = pattern(id, 0, 0, if whole { plan.length } else { 0 });
                if plan.prefix || !whole {
                    let flags = if whole { FIN | PREFIX } else { PREFIX };
                    let payload = [prefix.encode().as_slice(), &body].concat();
                    self.client_writes(Kind::Open, flags, ty, id, &payload);
                } else {
                    self.client_writes(Kind::Open, FIN, ty, id, &body);
                }
                let asking = Asking {
                    plan: self.next_plan,
                    whole,
                    ..Asking::default()
                };
                self.asking.insert(id, asking);
                self.next_plan += 1;
                true
            }
            Err(Refusal::Busy) => false,
            Err(Refusal::GoingAway) => {
                assert!(self.going_away);
                self.next_plan = self.plans.len();
                true
            }
            Err(Refusal::TooLarge) => {
                assert!(u64::from(plan.length) > LIMITS.max_message_size);
                self.next_plan += 1;
                true
            }
        }
    }

    fn send_request(&mut self, which: usize, amount: u32) -> bool {
        let ids: Vec<u64> = self
            .asking
            .iter()
            .filter(|(id, asking)| {
                let length = self.plans[asking.plan].length;
                // The END may carry the last bytes or none, but must be sent once.
                !asking.whole
                    && self
                        .client
                        .sendable(**id)
                        .is_some_and(|sendable| sendable > 0 && asking.sent < length)
            })
            .map(|(id, _)| *id)
            .collect();
        let Some(&id) = ids.get(which % ids.len().max(1)) else {
            return false;
        };
        let sendable = self.client.sendable(id).unwrap_or(0) as u32;
        let asking = self.asking.get_mut(&id).unwrap();
        let length = self.plans[asking.plan].length;
        let len = amount.clamp(1, LIMITS.max_frame_payload).min(sendable);
        let body = pattern(id, 0, asking.sent, len);
        asking.sent += len;
        let last = asking.sent == length;
        self.client.sent(id, len);
        let kind = if last { Kind::End } else { Kind::Data };
        self.client_writes(kind, 0, 0, id, &body);
        true
    }

    fn client_control(&mut self, room: bool) -> bool {
        let Some(control) = self.client.next_control() else {
            return false;
        };
        if !room {
            return true;
        }
        let mut payload = Vec::new();
        let (kind, flags, ty, id) = control.parts(&mut payload);
        self.client.control_sent();
        self.client_writes(kind, flags, ty, id, &payload);
        true
    }

    fn server_control(&mut self, room: bool) -> bool {
        let Some(control) = self.server.next_control() else {
            return false;
        };
        if !room {
            return true;
        }
        let mut payload = Vec::new();
        if let Control::Pong(bytes) = control {
            self.pongs = self.pongs.max(u64::from_le_bytes(*bytes));
        }
        let (kind, flags, ty, id) = control.parts(&mut payload);
        self.server.control_sent();
        self.server_writes(kind, flags, ty, id, &payload);
        true
    }

    fn server_receives(&mut self) -> bool {
        let Some(bytes) = self.to_server.pop_front() else {
            return false;
        };
        let (frame, taken) = CODEC.decode(&bytes).unwrap().unwrap();
        assert_eq!(taken, bytes.len());
        let event = match self.server.handle(&frame) {
            Ok(event) => event,
            Err(fault) => panic!("the daemon says {fault} of {frame:?}"),
        };
        match event {
            ServerEvent::Request {
                id,
                ty,
                prefix,
                body,
            } => {
                assert_eq!(body, pattern(id, 0, 0, body.len() as u32));
                let plan = self.plan_of(ty);
                let Plan {
                    items,
                    at_once,
                    accept,
                    ..
                } = self.plans[plan].clone();
                if at_once
                    && let [item] = items[..]
                    && item <= self.server.window(&prefix).min(LIMITS.max_frame_payload)
                {
                    self.server_writes(Kind::End, FIN, 0, id, &pattern(id, 1, 0, item));
                    return true;
                }
                self.server.track(id, &prefix, body.len()).unwrap();
                self.serve(id, plan, body.len(), true);
                if accept {
                    self.server.accept(id);
                }
            }
            ServerEvent::Begin { id, ty, first, .. } => {
                let plan = self.plan_of(ty);
                self.serve(id, plan, first.len(), false);
            }
            ServerEvent::Data { id, bytes } | ServerEvent::Complete { id, bytes } => {
                let serving = self.serving.get_mut(&id).expect("it has begun");
                let len = bytes.len() as u32;
                assert_eq!(bytes, pattern(id, 0, serving.received, len));
                serving.received += len;
                if matches!(event, ServerEvent::Complete { .. }) {
                    assert_eq!(serving.received, self.plans[serving.plan].length);
                    serving.complete = true;
                    if self.plans[serving.plan].accept {
                        self.server.accept(id);
                    }
                }
            }
            ServerEvent::Cancel { id } => {
                self.serving.remove(&id);
                self.server
                    .fail(id, ErrorBody::new(ErrorCode::Cancelled, "you did"));
            }
            ServerEvent::Credit { .. } | ServerEvent::Nothing => {}
        }
        true
    }

    fn plan_of(&self, ty: MessageType) -> usize {
        usize::from(ty.0 - 0x8000)
    }

    fn serve(&mut self, id: u64, plan: usize, received: usize, complete: bool) {
        let serving = Serving {
            plan,
            received: received as u32,
            complete,
            granted: complete,
            item: 0,
            offset: 0,
        };
        assert!(self.serving.insert(id, serving).is_none());
    }

    fn grant(&mut self, which: usize) -> bool {
        let waiting: Vec<u64> = self
            .serving
            .iter()
            .filter(|(_, serving)| !serving.granted)
            .map(|(id, _)| *id)
            .collect();
        let Some(&id) = waiting.get(which % waiting.len().max(1)) else {
            return false;
        };
        self.serving.get_mut(&id).unwrap().granted = true;
        self.server.grant(id);
        true
    }

    /// Sends a piece of some answer, within its credit.
    fn answer(&mut self, which: usize, amount: u32) -> bool {
        let ready: Vec<u64> = self
            .serving
            .iter()
            .filter(|(_, serving)| serving.complete)
            .map(|(id, _)| *id)
            .collect();
        let count = ready.len();
        // The first that can go on.
        (0..count).any(|at| self.answer_one(ready[(at + which) % count], amount))
    }

    fn answer_one(&mut self, id: u64, amount: u32) -> bool {
        let serving = &self.serving[&id];
        let plan = self.plans[serving.plan].clone();
        let Some(credit) = self.server.credit(id) else {
            // Failed: its ERROR is on its way.
            self.serving.remove(&id);
            return true;
        };
        let (item, offset) = (serving.item, serving.offset);
        if plan.fails_after.is_some_and(|after| after <= item) {
            self.server
                .fail(id, ErrorBody::new(ErrorCode::ProviderFailed, "planned"));
            self.serving.remove(&id);
            return true;
        }
        let Some(&length) = plan.items.get(item) else {
            self.server_writes(Kind::End, 0, 0, id, &[]);
            self.server.ended(id);
            self.serving.remove(&id);
            return true;
        };
        let rest = length - offset;
        let first = offset == 0;
        let mut most = LIMITS.max_frame_payload.min(credit).min(amount.max(1));
        if first && rest > most {
            most = most.min(LIMITS.max_frame_payload - ITEM_PREFIX_LEN as u32);
        }
        let len = rest.min(most);
        let all = len == rest;
        if len == 0 && !all {
            return false;
        }
        let last = plan.last_in_end && item + 1 == plan.items.len();
        let (kind, flags) = match (all, last) {
            (true, true) => (Kind::End, FIN),
            (true, false) => (Kind::Data, 0),
            (false, _) if first => (Kind::Data, MORE | PREFIX),
            (false, _) => (Kind::Data, MORE),
        };
        let mut payload = Vec::new();
        if first && !all {
            payload.extend_from_slice(&u64::from(length).to_le_bytes());
        }
        payload.extend_from_slice(&pattern(id, item + 1, offset, len));
        self.server_writes(kind, flags, 0, id, &payload);
        if kind == Kind::End {
            self.server.ended(id);
            self.serving.remove(&id);
            return true;
        }
        self.server.sent(id, len);
        let serving = self.serving.get_mut(&id).unwrap();
        (serving.item, serving.offset) = if all {
            (item + 1, 0)
        } else {
            (item, offset + len)
        };
        true
    }

    fn client_receives(&mut self) -> bool {
        let Some(bytes) = self.to_client.pop_front() else {
            return false;
        };
        let (frame, _) = CODEC.decode(&bytes).unwrap().unwrap();
        assert!(bytes.len() <= HEADER_LEN + LIMITS.max_frame_payload as usize);
        let event = match self.client.handle(&frame) {
            Ok(event) => event,
            Err(fault) => panic!("the client says {fault} of {frame:?}"),
        };
        let mut terminal = None;
        match event {
            ClientEvent::Piece {
                id,
                bytes,
                item_length,
                item_ends,
                stream_ends,
            } => {
                let asking = self.asking.get_mut(&id).unwrap();
                let expected = self.plans[asking.plan].items[asking.items.len()];
                assert_eq!(item_length.is_some(), !asking.in_item);
                if let Some(length) = item_length {
                    assert_eq!(length, u64::from(expected));
                }
                let len = bytes.len() as u32;
                let part = asking.items.len() + 1;
                assert_eq!(bytes, pattern(id, part, asking.item, len));
                asking.item += len;
                asking.unread += len;
                asking.in_item = !item_ends;
                if item_ends {
                    assert_eq!(asking.item, expected);
                    asking.items.push(std::mem::take(&mut asking.item));
                }
                if stream_ends {
                    terminal = Some((id, None));
                }
            }
            ClientEvent::Ended { id } => terminal = Some((id, None)),
            ClientEvent::Failed { id, body } => terminal = Some((id, Some(body.code))),
            ClientEvent::Accepted { id } | ClientEvent::Credit { id } => {
                assert_eq!(self.asking[&id].terminals, 0);
            }
            ClientEvent::GoAway(goaway) => assert_eq!(goaway.code, ErrorCode::ServerRestarting),
            ClientEvent::Closed(body) => panic!("the daemon closed the connection: {body}"),
            ClientEvent::Nothing => {}
        }
        if let Some((id, failed)) = terminal {
            let asking = self.asking.get_mut(&id).unwrap();
            asking.terminals += 1;
            asking.failed = failed;
        }
        true
    }

    /// A reader takes some of what came.
    fn take(&mut self, which: usize, amount: u32) -> bool {
        let unread: Vec<u64> = self
            .asking
            .iter()
            .filter(|(_, asking)| asking.unread > 0)
            .map(|(id, _)| *id)
            .collect();
        let Some(&id) = unread.get(which % unread.len().max(1)) else {
            return false;
        };
        let asking = self.asking.get_mut(&id).unwrap();
        let taken = amount.clamp(1, asking.unread);
        asking.unread -= taken;
        self.client.taken(id, taken);
        true
    }

    /// What does not happen in every run.
    fn disturb(&mut self, which: usize, amount: u32) -> bool {
        match amount % 16 {
            0 => {
                self.going_away = true;
                self.server.go_away(ErrorCode::ServerRestarting, 0);
            }
            1..6 => {
                self.pings += 1;
                let number = self.pings.to_le_bytes();
                self.client_writes(Kind::Ping, 0, 0, 0, &number);
            }
            _ => {
                let ids: Vec<u64> = self.asking.keys().copied().collect();
                let Some(&id) = ids.get(which % ids.len().max(1)) else {
                    return false;
                };
                if self.client.is_live(id) {
                    self.asking.get_mut(&id).unwrap().cancelled = true;
                }
                self.client.cancel(id);
            }
        }
        true
    }

    /// Lets everything that is under way come to its end.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            // Everything but the disturbances.
            if !(0..12).any(|what| self.step(what, 0, u32::MAX)) {
                return;
            }
        }
        panic!("the traffic does not end");
    }

    fn check(self) -> Result<(), TestCaseError> {
        let Self {
            plans,
            mut client,
            mut server,
            asking,
            serving,
            ended,
            going_away,
            ..
        } = self;
        prop_assert_eq!(client.live(), 0, "streams without an end: {:?}", asking);
        prop_assert_eq!(server.live(), 0);
        prop_assert!(serving.is_empty());
        prop_assert!(!client.has_control() || client.next_control().is_none());
        prop_assert!(!server.has_control() || server.next_control().is_none());
        server.trim();
        prop_assert!(server.is_trimmed(), "what has ended holds no memory");
        prop_assert_eq!(self.pings, self.pongs, "the last PING was answered");
        prop_assert_eq!(ended.len(), asking.len());
        for (id, asking) in &asking {
            prop_assert_eq!(asking.terminals, 1, "terminal frames of {}", id);
            let plan = &plans[asking.plan];
            match asking.failed {
                None => {
                    prop_assert_eq!(&asking.items, &plan.items);
                    prop_assert_eq!(asking.unread, 0);
                }
                Some(ErrorCode::Cancelled) => prop_assert!(asking.cancelled),
                Some(ErrorCode::ServerRestarting) => prop_assert!(going_away),
                Some(code) => {
                    prop_assert_eq!(code, ErrorCode::ProviderFailed);
                    prop_assert_eq!(Some(asking.items.len()), plan.fails_after);
                }
            }
        }
        if going_away {
            return Ok(());
        }
        // Nothing is left in the windows: they can be filled to the last byte once more, and not beyond.
        let mut left = LIMITS.inline_window;
        while left > 0 {
            let len = left.min(LIMITS.max_frame_payload);
            let opening = client.open(len.into(), false);
            let Ok(Opening { id, whole: true }) = opening else {
                return Err(TestCaseError::fail(format!(
                    "{opening:?} with {left} bytes left"
                )));
            };
            let body = vec![0; len as usize];
            let bytes = CODEC.encode(Kind::Open, FIN, 0x8000, id, &body);
            let (frame, _) = CODEC.decode(&bytes).unwrap().unwrap();
            let Ok(ServerEvent::Request { prefix, .. }) = server.handle(&frame) else {
                return Err(TestCaseError::fail("the request was not taken"));
            };
            prop_assert_eq!(server.track(id, &prefix, body.len()), Ok(()));
            left -= len;
        }
        prop_assert_eq!(client.open(1, false), Err(Refusal::Busy));
        Ok(())
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    let length = prop_oneof![
        4 => 0_u32..300,
        2 => 300_u32..5000,
        1 => Just(5001),
        1 => Just(0),
    ];
    let items = prop_oneof![vec(0_u32..700, 1), vec(0_u32..300, 0..12)];
    (
        length,
        any::<bool>(),
        items,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop_oneof![5 => Just(None), 1 => (0_usize..4).prop_map(Some)],
    )
        .prop_map(
            |(length, prefix, items, last_in_end, accept, at_once, fails_after)| Plan {
                length,
                prefix,
                last_in_end: last_in_end && !items.is_empty(),
                fails_after: fails_after.filter(|after| *after < items.len()),
                items,
                accept,
                at_once: at_once && fails_after.is_none(),
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn both_ends_agree_whatever_the_link_does(
        plans in vec(plan(), 1..12),
        window in prop_oneof![1_u32..64, 64_u32..3000],
        steps in vec((any::<u8>(), 0_usize..8, prop_oneof![1_u32..40, 0_u32..1000]), 0..600),
    ) {
        let mut link = Link::new(plans, window);
        for (what, which, amount) in steps {
            link.step(what, which, amount);
            for id in link.server.ids() {
                prop_assert!(link.server.credit(id).is_none_or(|credit| credit <= window));
            }
        }
        link.settle();
        link.check()?;
    }
}
