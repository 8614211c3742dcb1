// Memory bandwidth: read, write and copy over arrays that every thread touches first in its own part.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Word = std::uint64_t;

enum Kernel { kRead = 0, kWrite = 1, kCopy = 2 };

struct Part {
  Word* from;
  Word* to;
  std::size_t words;
};

Word read_all(const Part& part) {
  // Eight sums: one would wait for itself instead of for the memory.
  Word sums[8] = {};
  for (std::size_t i = 0; i < part.words; i += 8) {
    for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += part.from[i + lane];
  }
  Word total = 0;
  for (Word sum : sums) total += sum;
  return total;
}

void write_all(const Part& part, Word value) {
  for (std::size_t i = 0; i < part.words; ++i) part.to[i] = value;
}

void copy_all(const Part& part) {
  const Word* __restrict from = part.from;
  Word* __restrict to = part.to;
  for (std::size_t i = 0; i < part.words; ++i) to[i] = from[i];
}

// Keeps results alive so that no loop is removed.
std::atomic<Word> sink{0};

void run_kernel(Kernel kernel, const Part& part) {
  switch (kernel) {
    case kRead: sink.fetch_add(read_all(part), std::memory_order_relaxed); break;
    case kWrite: write_all(part, sink.load(std::memory_order_relaxed)); break;
    case kCopy: copy_all(part); break;
  }
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

// Starts all threads at once; returns seconds from the first start to the last end.
template <typename Work>
double together(const std::vector<Part>& parts, Work work) {
  std::atomic<std::size_t> ready{0};
  std::vector<Clock::time_point> begun(parts.size()), ended(parts.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    threads.emplace_back([&, i] {
      ready.fetch_add(1);
      while (ready.load() < parts.size()) std::this_thread::yield();
      begun[i] = Clock::now();
      work(parts[i]);
      ended[i] = Clock::now();
    });
  }
  for (auto& thread : threads) thread.join();
  Clock::time_point first = begun[0], last = ended[0];
  for (std::size_t i = 1; i < parts.size(); ++i) {
    if (begun[i] < first) first = begun[i];
    if (ended[i] > last) last = ended[i];
  }
  return std::chrono::duration<double>(last - first).count();
}

std::vector<Part> divide(Word* from, Word* to, std::size_t words, std::size_t threads) {
  std::vector<Part> parts;
  const std::size_t share = words / threads / 8 * 8;
  for (std::size_t i = 0; i < threads; ++i) parts.push_back({from + i * share, to + i * share, share});
  return parts;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Measures one kernel (0 read, 1 write, 2 copy) `repeats` times into `seconds`; returns the bytes that one array part
// of all threads together holds, or 0 when there is not enough memory or a thread's share would be empty.
EXPORT std::uint64_t sparkstack_memory(int kernel, std::uint64_t bytes, int threads, int repeats, double* seconds) {
  if (kernel < kRead || kernel > kCopy || threads < 1 || repeats < 1) return 0;
  const std::size_t words = bytes / sizeof(Word);
  if (words / static_cast<std::size_t>(threads) < 8) return 0;
  // Not value-initialised: the first touch below decides on which memory node a page lies.
  std::unique_ptr<Word[]> from(new (std::nothrow) Word[words]), to(new (std::nothrow) Word[words]);
  if (!from || !to) return 0;
  const auto parts = divide(from.get(), to.get(), words, static_cast<std::size_t>(threads));
  together(parts, [](const Part& part) {
    for (std::size_t i = 0; i < part.words; ++i) part.from[i] = part.to[i] = i;
  });
  together(parts, [kernel](const Part& part) { run_kernel(static_cast<Kernel>(kernel), part); });
  for (int i = 0; i < repeats; ++i) {
    seconds[i] = together(parts, [kernel](const Part& part) { run_kernel(static_cast<Kernel>(kernel), part); });
  }
  return static_cast<std::uint64_t>(parts[0].words) * sizeof(Word) * parts.size();
}
