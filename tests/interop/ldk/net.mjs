// LDK's connections. The package's own never write again once the system's buffer was full: the flag that says so stays.
import * as ldk from "#lightning";
import { NodeLDKNet } from "#lightning";

export class Net extends NodeLDKNet {
  get_descriptor(socket) {
    const index = this.descriptor_count;
    this.descriptor_count += 1n;
    socket.setNoDelay(true);
    const peers = this.peer_manager;
    let full = false;
    const descriptor = ldk.SocketDescriptor.new_impl({
      send_data: (data, resumeRead) => {
        if (resumeRead) socket.resume();
        else socket.pause();
        if (full) return 0;
        full = !socket.write(data);
        return data.length;
      },
      disconnect_socket: () => socket.destroy(),
      eq: (other) => other.hash() === index,
      hash: () => index,
    });
    socket.on("drain", () => {
      full = false;
      if (!peers.write_buffer_space_avail(descriptor).is_ok()) socket.destroy();
    });
    socket.on("data", (data) => {
      if (!peers.read_event(descriptor, data).is_ok()) socket.destroy();
      peers.process_events();
    });
    socket.on("close", () => peers.socket_disconnected(descriptor));
    socket.on("error", () => peers.socket_disconnected(descriptor));
    return descriptor;
  }
}
