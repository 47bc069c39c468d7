//! ONNX Runtime's own adapter files, `.onnx_adapter`: values for those inputs of a model that have defaults.
//!
//! A flatbuffer (onnxruntime/lora/adapter_format): the table `Adapter` of a format, an adapter and a model version
//! and a vector of `Parameter`, each a name, dims, an ONNX data type and bytes that are aligned to 8.

use super::emit::data_type;
use super::train_file::Weight;
use flatbuffers::{FlatBufferBuilder, Push, PushAlignment, VOffsetT, WIPOffset};

/// The version of the format that is written; readers check it.
const FORMAT_VERSION: i32 = 1;
/// Versions of the user's own; nothing depends on them.
const OWN_VERSION: i32 = 1;
const IDENTIFIER: &str = "TORT";

/// The place of a table's field in its list of fields.
const fn field(k: VOffsetT) -> VOffsetT {
    4 + 2 * k
}

/// Bytes whose first is aligned as the format asks.
struct Aligned;

impl Push for Aligned {
    type Output = u8;

    unsafe fn push(&self, dst: &mut [u8], _: usize) {
        dst.fill(0);
    }

    fn alignment() -> PushAlignment {
        PushAlignment::new(8)
    }
}

/// The bytes of a file with these values by name.
pub fn encode(parameters: &[(String, Weight)]) -> Vec<u8> {
    let mut b = FlatBufferBuilder::new();
    let mut tables = Vec::new();
    for (name, value) in parameters {
        b.start_vector::<Aligned>(value.bytes.len());
        for byte in value.bytes.iter().rev() {
            b.push(*byte);
        }
        let data: WIPOffset<flatbuffers::Vector<u8>> = b.end_vector(value.bytes.len());
        let dims = b.create_vector(&value.shape);
        let name = b.create_string(name);
        let table = b.start_table();
        b.push_slot_always(field(0), name);
        b.push_slot_always(field(1), dims);
        b.push_slot_always(field(2), data_type(value.dtype) as i32);
        b.push_slot_always(field(3), data);
        tables.push(b.end_table(table));
    }
    let parameters = b.create_vector(&tables);
    let table = b.start_table();
    for (k, version) in [FORMAT_VERSION, OWN_VERSION, OWN_VERSION].into_iter().enumerate() {
        b.push_slot_always(field(k as VOffsetT), version);
    }
    b.push_slot_always(field(3), parameters);
    let root = b.end_table(table);
    b.finish(root, Some(IDENTIFIER));
    b.finished_data().to_vec()
}
