//! The report as JSON: everything, with every single repetition.

use serde_json::{Value, json};

use super::{Report, against_iceoryx2, against_memcpy, against_node, against_tonic};

impl Report {
    pub(super) fn json(&self) -> Value {
        let rows = self.rows();
        let copied = self.copied();
        json!({
            "what": "round trips between two processes: request and answer with the same payload",
            "machine": self.machine,
            "settings": self.settings,
            "node": self.node,
            "groups_measured_again": self.measured_again,
            "left_out": self.left_out,
            "failures": self.failures,
            "rows": &rows,
            "memcpy": &copied,
            "against_iceoryx2": against_iceoryx2(&rows),
            "against_tonic": against_tonic(&rows),
            "against_node": against_node(&rows),
            "against_memcpy": against_memcpy(&rows, &copied),
            "repetitions": self.samples,
            "memcpy_repetitions": self.copied,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;

    #[test]
    fn the_json_has_the_rows_and_every_repetition() {
        let json = report().json();
        assert_eq!(json["rows"].as_array().unwrap().len(), 3);
        assert_eq!(json["repetitions"].as_array().unwrap().len(), 5);
        assert_eq!(json["rows"][0]["peer"], "ours_spinning");
        assert_eq!(json["rows"][0]["p50_us"], 0.4);
        assert_eq!(json["repetitions"][0]["latency"]["p50"], 300);
        assert_eq!(json["failures"][0], "the moon");
    }
}
