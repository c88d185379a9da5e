// Threads that share the tasks of one operation.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

// Denormal numbers are 0 here as they are in TensorFlow's own threads, whichever thread computes.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushDenormals() {}
#endif
};

// Own threads, for the C API does not hand out TensorFlow's. A second operation that runs at the same time finds the
// pool taken and computes alone, so there are never more busy threads than cores.
class Pool {
 public:
  static Pool& get() {
    static Pool* pool = new Pool;  // lives as long as its threads: for ever
    return *pool;
  }

  void resize(int threads) {
    std::lock_guard<std::mutex> owner(owner_);
    for (; size_ < threads; ++size_) {
      std::thread thread([this] { wait_for_work(); });
      workers_.push_back(thread.native_handle());
      thread.detach();
    }
  }

  int size() const { return size_; }

  void run(int64_t count, const std::function<void(int64_t)>& body) {
    FlushDenormals flush;
    if (count < 2 || size_ < 2 || !owner_.try_lock()) {
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = &body;
      count_ = count;
      next_ = 0;
      open_ = true;
      ++job_;
    }
    keep_workers_elsewhere();
    wake_.notify_all();
    work();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      open_ = false;  // who wakes up now is too late to join
      done_.wait(lock, [this] { return active_ == 0; });
    }
    owner_.unlock();
  }

 private:
  // Linux likes to wake a thread on the core of the one that wakes it, and leaves it there for milliseconds, longer than
  // most tasks take: both then share one core beside an idle one. Of many workers one at most meets that.
  void keep_workers_elsewhere() {
#if defined(__linux__)
    const int cpu = sched_getcpu();
    if (cpu == avoided_ || cpu < 0 || size_ > 8) return;
    if (avoided_ < 0 && sched_getaffinity(0, sizeof allowed_, &allowed_)) return;
    avoided_ = cpu;
    cpu_set_t others = allowed_;
    CPU_CLR(cpu, &others);
    if (!CPU_COUNT(&others)) return;
    for (std::thread::native_handle_type worker : workers_) pthread_setaffinity_np(worker, sizeof others, &others);
#endif
  }

  void work() {
    for (int64_t i; (i = next_.fetch_add(1)) < count_;) (*body_)(i);
  }

  void wait_for_work() {
    FlushDenormals flush;
    std::unique_lock<std::mutex> lock(mutex_);
    for (uint64_t seen = 0;;) {
      wake_.wait(lock, [&] { return open_ && job_ != seen; });
      seen = job_;
      ++active_;
      lock.unlock();
      work();
      lock.lock();
      if (--active_ == 0 && !open_) done_.notify_one();
    }
  }

  std::mutex owner_, mutex_;
  std::vector<std::thread::native_handle_type> workers_;
#if defined(__linux__)
  cpu_set_t allowed_;
  int avoided_ = -1;  // the core that workers keep off
#endif
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* body_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  uint64_t job_ = 0;
  int active_ = 0;
  bool open_ = false;
  std::atomic<int> size_{1};
};
