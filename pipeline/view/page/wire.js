// The connection to this viewer's world. A message from it is a header in JSON with arrays behind it, see wire.py.

export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = {};
  let start = 4 + length;
  for (const { name, form, shape, size } of header.parts) {
    const bytes = buffer.slice(start, start + size);
    arrays[name] = { form, shape, data: form === "f32" ? new Float32Array(bytes) : new Uint8Array(bytes) };
    start += size;
  }
  return { header, arrays };
}

export class Connection {
  // onMessage gets {header, arrays}; onEnd is called once, when the connection is over.
  constructor(onMessage, onEnd) {
    const address = new URL("world", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => onMessage(unpack(data));
    this.socket.onclose = ({ reason }) => onEnd(reason);
  }

  close() {
    this.socket.close();
  }

  send(what, facts = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ do: what, ...facts }));
  }
}
