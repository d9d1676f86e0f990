// Whole messages of a ZeroMQ socket, read and sent in one call each. Not a kernel: to Python, each
// frame and each question to libzmq costs microseconds, and a peer may send a million frames.

#ifndef SCISSIONLITE_MESSAGE_SOCKET_H
#define SCISSIONLITE_MESSAGE_SOCKET_H

#include <linux/filter.h>
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace scissionlite {

namespace py = pybind11;

// Constants of zmq.h, which never change.
constexpr int zmq_dont_wait = 1, zmq_send_more = 2, zmq_source_fd = 2, zmq_fd = 14, zmq_events = 15,
              zmq_send_timeout = 28;

using AddressOf = std::function<std::uintptr_t(const char*)>;

// Functions of the libzmq that pyzmq loaded: this module does not link with another.
struct Libzmq {
  explicit Libzmq(const AddressOf& address_of) {
    find(address_of, "zmq_msg_init", init);
    find(address_of, "zmq_msg_init_size", init_size);
    find(address_of, "zmq_msg_init_data", init_data);
    find(address_of, "zmq_msg_data", data);
    find(address_of, "zmq_msg_size", size);
    find(address_of, "zmq_msg_more", more);
    find(address_of, "zmq_msg_get", get);
    find(address_of, "zmq_msg_gets", property);
    find(address_of, "zmq_msg_recv", receive);
    find(address_of, "zmq_msg_send", send);
    find(address_of, "zmq_msg_close", close);
    find(address_of, "zmq_getsockopt", option);
  }

  int (*init)(void*);
  int (*init_size)(void*, std::size_t);
  int (*init_data)(void*, void*, std::size_t, void (*)(void*, void*), void*);
  void* (*data)(void*);
  std::size_t (*size)(const void*);
  int (*more)(const void*);
  int (*get)(const void*, int);
  const char* (*property)(const void*, const char*);
  int (*receive)(void*, void*, int);
  int (*send)(void*, void*, int);
  int (*close)(void*);
  int (*option)(void*, int, void*, std::size_t*);

 private:
  template <typename Function>
  static void find(const AddressOf& address_of, const char* name, Function& function) {
    function = reinterpret_cast<Function>(address_of(name));
  }
};

// One frame; its memory is libzmq's.
class Frame {
 public:
  explicit Frame(std::shared_ptr<const Libzmq> libzmq) : libzmq_(std::move(libzmq)) {
    libzmq_->init(message_);
  }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;
  ~Frame() { libzmq_->close(message_); }

  // Turns an empty frame into one of so many bytes, to be written to; false if there is no memory.
  bool allocate(std::size_t nbytes) { return libzmq_->init_size(message_, nbytes) == 0; }
  bool borrow(void* bytes, std::size_t nbytes, void (*give_back)(void*, void*), void* hint) {
    return libzmq_->init_data(message_, bytes, nbytes, give_back, hint) == 0;
  }

  void* message() { return message_; }
  void* data() { return libzmq_->data(message_); }
  std::size_t size() const { return libzmq_->size(message_); }
  bool more() const { return libzmq_->more(message_) != 0; }
  int source() const { return libzmq_->get(message_, zmq_source_fd); }
  // A property of its connection; empty if it has none.
  std::string property(const std::string& name) const {
    const char* const found = name.empty() ? nullptr : libzmq_->property(message_, name.c_str());
    return found == nullptr ? "" : found;
  }

 private:
  std::shared_ptr<const Libzmq> libzmq_;
  alignas(void*) unsigned char message_[64];  // zmq_msg_t, since libzmq 4.1
};

// A buffer of Python's that libzmq sends from, until libzmq gives it back.
class Lent {
 public:
  explicit Lent(const py::handle& object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  ~Lent() { PyBuffer_Release(&view_); }

  void* data() const { return view_.buf; }
  std::size_t size() const { return static_cast<std::size_t>(view_.len); }

  // Called in a thread of libzmq's, which must not wait for the GIL: it only makes a note.
  static void give_back(void*, void* hint) {
    Lent* lent = static_cast<Lent*>(hint);
    lent->next_ = given_back_.load(std::memory_order_relaxed);
    while (!given_back_.compare_exchange_weak(lent->next_, lent, std::memory_order_release,
                                              std::memory_order_relaxed)) {
    }
  }

  // Frees what was given back, with the GIL.
  static void free_given_back() {
    if (given_back_.load(std::memory_order_relaxed) == nullptr) return;
    for (Lent* lent = given_back_.exchange(nullptr, std::memory_order_acquire); lent != nullptr;) {
      delete std::exchange(lent, lent->next_);
    }
  }

 private:
  inline static std::atomic<Lent*> given_back_{nullptr};

  Py_buffer view_{};
  Lent* next_ = nullptr;
};

class MessageSocket {
 public:
  // At most so many frames of a message are returned. `property` names who sent it.
  MessageSocket(const AddressOf& address_of, std::uintptr_t socket, std::size_t most,
                std::string property)
      : libzmq_(std::make_shared<const Libzmq>(address_of)),
        socket_(reinterpret_cast<void*>(socket)),
        most_(most),
        property_(std::move(property)) {}

  // To be called before the socket is closed: libzmq does not survive the use of one that is.
  void close() { socket_ = nullptr; }

  bool busy() const { return unfinished_ || paused_; }
  int events() { return option(zmq_events); }
  int descriptor() { return option(zmq_fd); }

  // Throws the messages of a connection away from now on, and counts them, until it ends or
  // unmute() is called. Its descriptor may be another's by then, but not with the same inode.
  // The kernel drops what else a TCP connection brings: its peer has to send that again.
  void mute(int descriptor) {
    const ino_t inode = inode_of(descriptor);
    if (inode == 0) return;
    muted_[descriptor] = Muted{inode};
    sock_filter drop_all{BPF_RET | BPF_K, 0, 0, 0};
    const sock_fprog program{1, &drop_all};
    // It fails where there are no filters; the messages are thrown away all the same.
    static_cast<void>(
        setsockopt(descriptor, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
    if (inode_of(descriptor) != inode) hear(descriptor);
  }

  void unmute() {
    for (const auto& [descriptor, muted] : muted_) {
      if (inode_of(descriptor) == muted.inode) hear(descriptor);
    }
    muted_.clear();
  }

  // Descriptor, messages, frames and bytes of what was thrown away since the last call.
  py::list thrown() {
    py::list counts;
    for (auto& [descriptor, muted] : muted_) {
      if (muted.messages == 0) continue;
      counts.append(py::make_tuple(descriptor, muted.messages, muted.frames, muted.bytes));
      muted = Muted{muted.inode};
    }
    return counts;
  }

  // Frames, the descriptor of the connection (-1: unknown), and the property; no frames if there
  // is no message yet.
  py::tuple receive() {
    check_open();
    Lent::free_given_back();
    paused_ = false;
    if (unfinished_) {
      unfinished_ = !discard();
      return nothing();
    }
    for (std::size_t thrown = 0; thrown < most_thrown_; ++thrown) {
      Message frames = read();
      if (frames.empty()) return nothing();
      const Frame& last = *frames.back();
      unfinished_ = last.more();
      if (throws_away(frames)) {
        if (unfinished_) return nothing();
        continue;
      }
      py::list views;
      for (auto& frame : frames) views.append(py::memoryview(py::cast(std::move(frame))));
      return py::make_tuple(std::move(views), last.source(), last.property(property_));
    }
    paused_ = true;
    return nothing();
  }

  // Whether the message was sent; false if there is no room within the socket's time. Small frames
  // are copied.
  bool send(const py::list& buffers) {
    check_open();
    Lent::free_given_back();
    std::deque<Frame> frames;
    for (const py::handle buffer : buffers) {
      auto lent = std::make_unique<Lent>(buffer);
      Frame& frame = frames.emplace_back(libzmq_);
      if (lent->size() < most_copied_) {
        if (!frame.allocate(lent->size())) throw_error();
        if (lent->size() > 0) std::memcpy(frame.data(), lent->data(), lent->size());
      } else {
        if (!frame.borrow(lent->data(), lent->size(), &Lent::give_back, lent.get())) throw_error();
        lent.release();
      }
    }
    bool wait = false;
    for (std::size_t i = 0; i < frames.size();) {
      const int flags = (i + 1 < frames.size() ? zmq_send_more : 0) | (wait ? 0 : zmq_dont_wait);
      if (send_frame(frames[i], flags) >= 0) {
        ++i;
      } else if (errno == EINTR) {
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      } else if (errno != EAGAIN) {
        throw_error();
      } else if (wait || option(zmq_send_timeout) == 0) {
        return false;
      } else {
        wait = true;
      }
    }
    return true;
  }

 private:
  using Message = std::vector<std::unique_ptr<Frame>>;

  struct Muted {
    ino_t inode;
    std::size_t messages = 0, frames = 0, bytes = 0;  // thrown away
  };

  static constexpr std::size_t most_copied_ = 1 << 16;  // bytes that are copied faster than lent
  // Messages thrown away at a time: who is read slowly can send only slowly.
  static constexpr std::size_t most_thrown_ = 4;
  static constexpr std::size_t slice_ = 20'000;  // frames thrown away at a time: milliseconds

  // Of an open file; 0 if there is none.
  static ino_t inode_of(int descriptor) {
    struct stat status{};
    return fstat(descriptor, &status) == 0 ? status.st_ino : 0;
  }

  // Has the kernel drop nothing of a connection any more.
  static void hear(int descriptor) {
    const int unused = 0;
    static_cast<void>(
        setsockopt(descriptor, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof(unused)));
  }

  static py::tuple nothing() { return py::make_tuple(py::list(), -1, py::str()); }

  void check_open() const {
    if (socket_ != nullptr) return;
    errno = ENOTSOCK;
    throw_error();
  }

  [[noreturn]] static void throw_error() {
    const int code = errno;
    py::set_error(py::module_::import("zmq").attr("ZMQError"), py::int_(code));
    throw py::error_already_set();
  }

  int send_frame(Frame& frame, int flags) {
    if (flags & zmq_dont_wait) return libzmq_->send(frame.message(), socket_, flags);
    const py::gil_scoped_release released;
    return libzmq_->send(frame.message(), socket_, flags);
  }

  // A message, or its first frames; none if there is no message yet.
  Message read() {
    Message frames;
    do {
      auto frame = std::make_unique<Frame>(libzmq_);
      while (libzmq_->receive(frame->message(), socket_, zmq_dont_wait) < 0) {
        if (errno == EAGAIN) return {};
        if (errno != EINTR) throw_error();
      }
      frames.push_back(std::move(frame));
    } while (frames.back()->more() && frames.size() < most_);
    return frames;
  }

  // Whether a message came by a connection that is muted; counts it.
  bool throws_away(const Message& frames) {
    if (muted_.empty()) return false;
    const int descriptor = frames.back()->source();
    const auto found = muted_.find(descriptor);
    if (found == muted_.end()) return false;
    if (inode_of(descriptor) != found->second.inode) return false;
    ++found->second.messages;
    for (const auto& frame : frames) {
      if (frame->source() != descriptor) continue;  // an identity, which a ROUTER adds
      ++found->second.frames;
      found->second.bytes += frame->size();
    }
    return true;
  }

  // Throws frames away, at most so many; whether their message has ended.
  bool discard() {
    const py::gil_scoped_release released;
    Frame frame(libzmq_);
    bool more = true;
    for (std::size_t i = 0; more && i < slice_; ++i) {
      // A message is delivered whole, so there is no frame to wait for; an error ends it too.
      more = libzmq_->receive(frame.message(), socket_, zmq_dont_wait) >= 0 && frame.more();
    }
    return !more;
  }

  int option(int name) {
    check_open();
    int value = 0;
    std::size_t size = sizeof(value);
    while (libzmq_->option(socket_, name, &value, &size) != 0) {
      if (errno != EINTR) throw_error();
    }
    return value;
  }

  std::shared_ptr<const Libzmq> libzmq_;
  void* socket_;
  std::size_t most_;
  std::string property_;
  std::unordered_map<int, Muted> muted_;
  bool unfinished_ = false;  // frames of a message are still to be thrown away
  bool paused_ = false;      // messages of those that are muted may be
};

}  // namespace scissionlite

#endif
