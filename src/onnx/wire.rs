//! Messages as they lie in a file: fields that are passed on untouched.

use prost::bytes::Bytes;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};

/// The numbers of `ModelProto.graph`, `GraphProto.node` and `GraphProto.initializer`.
pub const GRAPH: u32 = 7;
pub const NODE: u32 = 1;
pub const INITIALIZER: u32 = 5;

/// One field of a message as it lies in the file.
pub struct Field {
    pub tag: u32,
    /// Key and value.
    pub whole: Bytes,
    /// The value of a length-delimited field; empty for others.
    pub content: Bytes,
}

/// The fields of a message, in their order.
pub fn fields(message: &Bytes) -> std::result::Result<Vec<Field>, String> {
    let broken = |e: prost::DecodeError| e.to_string();
    let mut rest = message.clone();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let start = message.len() - rest.len();
        let (tag, wire) = decode_key(&mut rest).map_err(broken)?;
        let mut content = Bytes::new();
        if wire == WireType::LengthDelimited {
            let length = decode_varint(&mut rest).map_err(broken)?;
            let length = usize::try_from(length).ok().filter(|n| *n <= rest.len());
            let length = length.ok_or_else(|| format!("field {tag} is longer than the file"))?;
            content = rest.split_to(length);
        } else {
            skip_field(wire, tag, &mut rest, DecodeContext::default()).map_err(broken)?;
        }
        found.push(Field { tag, whole: message.slice(start..message.len() - rest.len()), content });
    }
    Ok(found)
}

/// The bytes of all fields but those of number `tag`.
pub fn others(fields: &[Field], tag: u32) -> Vec<u8> {
    fields.iter().filter(|f| f.tag != tag).flat_map(|f| f.whole.iter().copied()).collect()
}

/// The bytes of a `ModelProto` of which `model` are the fields, with another graph.
pub fn with_graph(model: &[Field], graph: &[u8]) -> Vec<u8> {
    let mut bytes = others(model, GRAPH);
    put(GRAPH, graph, &mut bytes);
    bytes
}

/// Appends a length-delimited field.
pub fn put(tag: u32, content: &[u8], to: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, to);
    encode_varint(content.len() as u64, to);
    to.extend_from_slice(content);
}
