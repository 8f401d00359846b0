// What the application has given us to send: its chunks in order, each byte with a position in the stream.
//
//        head                    cursor                tail
//   [ chunk ]-->[ chunk ]-->[ chunk ]-->[ chunk ]-->[ chunk ]
//   |<- acknowledged .. SND.UNA .. sent .. SND.NXT .. not sent ->|
//   head_position                                               end
//
// A chunk goes back to its owner when its last byte is acknowledged. New data is read at the cursor; a retransmission
// looks from the head. The bytes are the application's and may change under us: a transmission reads each once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "daemon/stack/owner.h"
#include "daemon/stack/tcp/sequence.h"
#include "shm/base/check.h"

namespace culvert::stack::tcp {

class SendQueue {
public:
    /// Reads forward from a position.
    class Reader {
    public:
        Reader(const SendChunk* chunk, std::uint32_t offset) : chunk_(chunk), offset_(offset) { skip_empty(); }
        /// The rest of the current chunk. Requires: something is left.
        std::span<const std::byte> run() const { return {chunk_->data + offset_, chunk_->length - offset_}; }
        void advance(std::size_t bytes) {
            offset_ += static_cast<std::uint32_t>(bytes);
            skip_empty();
        }

    private:
        void skip_empty() {
            while (chunk_ != nullptr && offset_ >= chunk_->length) {
                offset_ -= chunk_->length;
                chunk_ = chunk_->next;
            }
        }
        const SendChunk* chunk_;
        std::uint32_t offset_;
    };

    /// The stream's first byte has this position. Requires: empty.
    void start(Position first) {
        DCHECK(head_ == nullptr);
        head_position_ = end_ = cursor_position_ = first;
    }

    /// Appends the list first..last.
    void append(SendChunk* first, SendChunk* last) {
        last->next = nullptr;
        if (head_ == nullptr) {
            head_ = cursor_ = first;
            head_position_ = cursor_position_ = end_;
        } else {
            tail_->next = first;
        }
        tail_ = last;
        for (const SendChunk* chunk = first; chunk != nullptr; chunk = chunk->next) end_ += chunk->length;
    }

    /// The position behind the last byte.
    Position end() const { return end_; }
    bool empty() const { return head_ == nullptr; }

    /// Takes the chunks whose bytes all lie before `una` off the list and returns them as one; nullptr if none.
    SendChunk* acknowledge(Position una) {
        if (head_ == nullptr || head_position_ + head_->length > una) return nullptr;
        SendChunk* const first = head_;
        SendChunk* last = nullptr;
        while (head_ != nullptr && head_position_ + head_->length <= una) {
            head_position_ += head_->length;
            last = head_;
            head_ = head_->next;
        }
        last->next = nullptr;
        if (head_ == nullptr) tail_ = nullptr;
        if (cursor_position_ < head_position_ || head_ == nullptr) {
            cursor_ = head_;
            cursor_position_ = head_position_;
        }
        // The cursor may stand on a released chunk of no length at the same position.
        if (cursor_position_ == head_position_) cursor_ = head_;
        return first;
    }

    /// Everything that is left, as one list; nullptr if nothing is.
    SendChunk* take_all() {
        SendChunk* const first = head_;
        head_ = tail_ = cursor_ = nullptr;
        head_position_ = cursor_position_ = end_;
        return first;
    }

    /// Requires: a byte at `position` is in the queue. The cursor moves along with new data (`advance_cursor`).
    Reader read(Position position, bool advance_cursor) {
        DCHECK(head_position_ <= position && position < end_);
        SendChunk* chunk = head_;
        Position at = head_position_;
        if (position >= cursor_position_) {
            chunk = cursor_;
            at = cursor_position_;
        }
        while (position - at >= chunk->length) {
            at += chunk->length;
            chunk = chunk->next;
        }
        if (advance_cursor) {
            cursor_ = chunk;
            cursor_position_ = at;
        }
        return Reader(chunk, static_cast<std::uint32_t>(position - at));
    }

private:
    SendChunk* head_ = nullptr;
    SendChunk* tail_ = nullptr;
    SendChunk* cursor_ = nullptr;  // the chunk that new data was last read from
    Position head_position_ = 0;         // of head_'s first byte
    Position cursor_position_ = 0;       // of cursor_'s first byte
    Position end_ = 0;
};

}  // namespace culvert::stack::tcp
