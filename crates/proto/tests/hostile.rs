//! Arbitrary frames against either state machine: nothing but events and faults, and never more than was allowed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use lapce_ai_proto::{FIN, Kind, MORE, OpenPrefix, PREFIX};
use proptest::collection::vec;
use proptest::prelude::*;
use support::frames::{Step, Written, against_client, against_server, stream};

/// Payloads that mean something to some kind: credits, prefixes, lengths.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        vec(any::<u8>(), 0..40),
        (0_u32..2000).prop_map(|credit| credit.to_le_bytes().to_vec()),
        Just(u32::MAX.to_le_bytes().to_vec()),
        (0_u64..5000, 0_usize..400).prop_map(|(total_length, first)| {
            let prefix = OpenPrefix {
                total_length,
                ..OpenPrefix::default()
            };
            [prefix.encode().as_slice(), &vec![1; first]].concat()
        }),
        (0_u64..600, 0_usize..300).prop_map(|(length, first)| [
            &length.to_le_bytes()[..],
            &vec![2; first]
        ]
        .concat()),
    ]
}

fn frame() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![
        3 => Just(0),
        2 => Just(FIN),
        2 => Just(PREFIX),
        1 => Just(FIN | PREFIX),
        2 => Just(MORE),
        2 => Just(MORE | PREFIX),
        1 => any::<u8>().prop_map(|flags| flags & 0x70),
    ];
    let kind = prop_oneof![
        4 => Just(Kind::Open as u8),
        4 => Just(Kind::Data as u8),
        4 => Just(Kind::End as u8),
        4 => 1_u8..12,
        1 => 0_u8..16,
    ];
    let ty = prop_oneof![9 => Just(0_u16), 1 => any::<u16>()];
    (kind, flags, ty, 0_u64..12, payload()).prop_map(|(kind, flags, ty, id, payload)| {
        Step::Frame(Written {
            flags: kind | flags,
            ty,
            id,
            payload,
        })
    })
}

fn script() -> impl Strategy<Value = Vec<Step>> {
    let act = (any::<u8>(), 0_u64..12, 0_u32..1500).prop_map(|(what, id, amount)| Step::Act {
        what,
        id,
        amount,
    });
    vec(prop_oneof![frame(), act], 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_daemons_end_takes_anything(script in script()) {
        against_server(&script);
    }

    #[test]
    fn the_clients_end_takes_anything(script in script()) {
        against_client(&script);
    }

    #[test]
    fn a_byte_stream_is_read_up_to_its_first_fault(bytes in vec(any::<u8>(), 0..400), crc: bool) {
        stream(&bytes, crc);
    }
}
