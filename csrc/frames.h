// The rest of a ZeroMQ message, read and thrown away at the speed of libzmq. Not a kernel: a peer
// may send a message of a million frames, each of which costs Python microseconds.

#ifndef SCISSIONLITE_FRAMES_H
#define SCISSIONLITE_FRAMES_H

#include <cstddef>
#include <cstdint>

namespace scissionlite {

// Functions of the libzmq that pyzmq loaded, as addresses: this module does not link with another.
struct Libzmq {
  using Init = int (*)(void*);
  using Receive = int (*)(void*, void*, int);
  using More = int (*)(const void*);
  using Close = int (*)(void*);

  Init init;
  Receive receive;
  More more;
  Close close;
};

// Reads at most so many frames of the message under way, without waiting; returns whether it ended.
inline bool discard_frames(const Libzmq& libzmq, void* socket, std::size_t most) noexcept {
  constexpr int dont_wait = 1;               // ZMQ_DONTWAIT
  alignas(void*) unsigned char message[64];  // zmq_msg_t, since libzmq 4.1
  libzmq.init(message);
  bool more = true;
  for (std::size_t i = 0; more && i < most; ++i) {
    // A message is delivered whole, so there is no frame to wait for; an error ends it too.
    more = libzmq.receive(message, socket, dont_wait) >= 0 && libzmq.more(message) != 0;
  }
  libzmq.close(message);
  return !more;
}

}  // namespace scissionlite

#endif
