// What an export wrote beside its graph. onnxruntime-web does not give it, so it is read from the file itself.

const METADATA = 14; // the number of `metadata_props` in ONNX's ModelProto

/** The fields of a protobuf message that have bytes as their content: [number, content]. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (!(byte & 128)) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag & 7;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind !== 2) throw new Error("this is not protobuf");
    else {
      const length = varint();
      yield [tag >> 3, bytes.subarray(at, (at += length))];
    }
    if (at > bytes.length) throw new Error("the file is cut off");
  }
}

/** The file's properties, {key: text}. Throws if the bytes are not an ONNX file. */
export function properties(bytes) {
  const found = {};
  const text = new TextDecoder();
  for (const [number, content] of fields(bytes)) {
    if (number !== METADATA) continue;
    const [key, value] = [...fields(content)].map(([, part]) => text.decode(part));
    found[key] = value;
  }
  return found;
}
