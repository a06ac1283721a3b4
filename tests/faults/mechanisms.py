"""What keeps each promise of ``docs/reliability.md``, and the test that misses it.

``python tests/faults/removal.py`` takes the mechanisms away one by one and runs their tests.
"""

from __future__ import annotations

from dataclasses import dataclass

SERVER = "server/hugepool_server"
CLIENT = "client/hugepool"
COMMON = "common/hugepool_common"

UNIT = "tests/unit/server"
SYSTEM = "tests/system"
FAULTS = "tests/faults"


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One thing that keeps a promise.

    Parameters
    ----------
    promise
        The heading in ``docs/reliability.md`` that it stands under.
    what
        It, in a few words.
    file
        Its module, from the root of the tree.
    line, instead
        Text that the module has once, and what stands in its place when it is taken away.
    test
        What fails then.
    """

    promise: str
    what: str
    file: str
    line: str
    instead: str
    test: str


def _of(promise: str, *rows: tuple[str, str, str, str, str]) -> tuple[Mechanism, ...]:
    return tuple(Mechanism(promise, *row) for row in rows)


MECHANISMS = (
    *_of(
        "Nothing stays behind",
        (
            "a start removes segments without a manifest",
            f"{SERVER}/recovery.py",
            "return segment_id in known",
            "return True",
            f"{UNIT}/test_recovery.py::test_a_segment_without_a_manifest_is_removed",
        ),
        (
            "a start sweeps what dead coordinators left that nobody will come back to",
            f"{SERVER}/daemon.py",
            "self._directories.sweep(mounts, boot=boot, keep=known)",
            "self._directories.prune(lambda path: True)",
            f"{SYSTEM}/test_restart.py"
            "::test_nobody_comes_back_to_a_runtime_directory_that_was_removed",
        ),
        (
            "what a dead client had not sealed goes",
            f"{SERVER}/array_requests.py",
            "for found in state.registry.orphans:",
            "for found in ():",
            f"{SYSTEM}/test_service.py::test_a_dead_client_loses_what_it_had_not_sealed",
        ),
        (
            "what was temporary goes with its client, sealed or not",
            f"{SERVER}/registry.py",
            "if found.goes_with_owner and found.state in lasting",
            "if not found.sealed and found.state in lasting",
            f"{FAULTS}/test_promises.py"
            "::test_a_client_killed_in_a_job_leaves_none_of_its_temporaries",
        ),
        (
            "a superseded generation goes with its last reader",
            f"{SERVER}/array_requests.py",
            "for found in state.registry.superseded:",
            "for found in ():",
            f"{UNIT}/test_generations.py::test_what_nobody_reads_goes_when_it_is_superseded",
        ),
        (
            "a segment that could not be removed is removed later",
            f"{SERVER}/makers.py",
            'log.error("cannot remove a segment yet: %s", error)\n'
            "            self._unremoved.append(segment)",
            'log.error("cannot remove a segment yet: %s", error)',
            f"{UNIT}/test_makers.py::test_a_segment_that_cannot_be_removed_is_removed_later",
        ),
        (
            "a start removes the tokens of the dead",
            f"{SERVER}/tokens.py",
            "                self._unlink(name)\n                os.close(fd)",
            "                os.close(fd)",
            f"{UNIT}/test_tokens.py::test_the_living_are_taken_over_and_the_dead_removed",
        ),
        (
            "a file without a name gives its pages back at once",
            f"{SERVER}/backends/unpublished.py",
            "                os.ftruncate(self.fd, 0)",
            "                pass",
            f"{UNIT}/test_unpublished.py"
            "::test_what_is_not_published_keeps_no_page_wherever_else_it_is_open",
        ),
    ),
    *_of(
        "A name is whole or is not",
        (
            "an array is there when its manifest is",
            f"{SERVER}/makers.py",
            "                self._manifests.write(record)",
            "                pass",
            f"{UNIT}/test_makers.py::test_what_is_told_to_be_made_is_written_down",
        ),
        (
            "without its manifest there is no segment",
            f"{SERVER}/makers.py",
            "        except BaseException:\n            self._remove(segment)",
            "        except BaseException:\n            pass",
            f"{UNIT}/test_makers.py::test_without_its_manifest_there_is_no_segment",
        ),
        (
            "a record is written beside its place and renamed",
            f"{SERVER}/record_files.py",
            "unfinished = {name: paths.unfinished_name(name) for name in files}",
            "unfinished = {name: name for name in files}",
            f"{UNIT}/test_manifests.py::test_a_refused_write_leaves_the_old_manifest",
        ),
        (
            "a record has a checksum",
            f"{SERVER}/records.py",
            " or zlib.crc32(body) != checksum",
            "",
            f"{UNIT}/test_records.py::test_every_changed_bit_is_seen",
        ),
        (
            "a segment with a hole gets no name",
            f"{SERVER}/backends/base.py",
            "if held_bytes < length or report.present_bytes != length:",
            "if False:",
            f"{FAULTS}/test_refusals.py::test_a_hole_in_a_file_is_never_published",
        ),
        (
            "a destroyed array loses its manifest first",
            f"{SERVER}/makers.py",
            "        if not self._forget(segment.segment_id):",
            "        self._remove(segment)\n        if not self._forget(segment.segment_id):",
            f"{UNIT}/test_makers.py::test_a_manifest_goes_before_its_segment",
        ),
        (
            "what is destroyed stays until its manifest could be removed",
            f"{SERVER}/makers.py",
            "        if not self._forget(segment.segment_id):\n"
            "            self._unremoved.append(segment)\n            return\n",
            "        if not self._forget(segment.segment_id):\n"
            "            self._unremoved.append(segment)\n",
            f"{UNIT}/test_makers.py::test_a_segment_stays_until_its_manifest_could_be_removed",
        ),
        (
            "what was given up has no manifest",
            f"{SERVER}/makers.py",
            "                if making.cancel.is_set():",
            "                if False:",
            f"{UNIT}/test_makers.py"
            "::test_what_is_cancelled_when_its_segment_was_just_made_gets_no_manifest",
        ),
    ),
    *_of(
        "Errors, no signals",
        (
            "a file that is another or shorter is not mapped",
            f"{COMMON}/segment_file.py",
            "    if needed != had:",
            "    if False:",
            "tests/unit/common/test_mapping.py::test_another_file_is_refused",
        ),
        (
            "pages are had from the kernel before anything touches them",
            f"{COMMON}/mapping.py",
            "            self._populate_slice(offset, end, advice)",
            "            pass",
            "tests/unit/common/test_mapping.py::test_pages_past_the_end_are_an_error_and_no_signal",
        ),
        (
            "a matrix is checked when it is sealed",
            f"{SERVER}/sealing.py",
            "        check.conclude()",
            "        pass",
            f"{UNIT}/test_sealing.py::test_a_bad_indptr_is_refused",
        ),
        (
            "whatever the kernel refuses while mapping is an error of hugepool's",
            f"{COMMON}/mapping.py",
            "            raise refusal(error, segment.path) from error",
            "            raise",
            "tests/unit/common/test_mapping.py"
            "::test_whatever_the_kernel_refuses_is_an_error_of_ours",
        ),
        (
            "the coordinator takes all descriptors that it may have",
            f"{SERVER}/descriptors.py",
            "            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))",
            "            pass",
            f"{SYSTEM}/test_liveness.py"
            "::test_the_limit_is_raised_and_promises_no_more_sessions_than_it_is_good_for",
        ),
        (
            "new sessions are turned away long before the last descriptor",
            f"{SERVER}/descriptors.py",
            "return open_count() * 100 > limit * _FULL_PERCENT",
            "return False",
            f"{SYSTEM}/test_liveness.py"
            "::test_a_rush_of_connections_turns_newcomers_away_and_harms_nobody",
        ),
        (
            "a client looks for descriptors before its ZeroMQ library needs them",
            f"{CLIENT}/session.py",
            "        while len(taken) < _DESCRIPTORS:",
            "        while False:",
            f"{SYSTEM}/test_reconnect.py"
            "::test_a_process_short_of_descriptors_is_refused_and_not_ended",
        ),
        (
            "so it does for threads and address space",
            f"{CLIENT}/session.py",
            "        check_threads(address)\n",
            "",
            f"{SYSTEM}/test_reconnect.py"
            "::test_a_process_short_of_address_space_is_refused_and_not_ended",
        ),
        (
            "and so does the coordinator",
            f"{SERVER}/daemon.py",
            "            check_threads(self.address)\n",
            "",
            f"{SYSTEM}/test_reconnect.py::test_a_coordinator_short_of_address_space_says_so",
        ),
    ),
    *_of(
        "A refusal changes nothing",
        (
            "quotas are looked at before anything is taken",
            f"{SERVER}/registry.py",
            "if limit and had + spec.nbytes > limit:",
            "if False:",
            f"{SYSTEM}/test_quota.py::test_a_quota_is_refused_before_anything_is_taken",
        ),
        (
            "what is removed counts no more",
            f"{SERVER}/registry.py",
            "        self._charge(found, -1)\n",
            "",
            f"{UNIT}/test_quotas.py::test_what_is_superseded_counts_as_long_as_it_is_kept",
        ),
        (
            "memory is promised once",
            f"{SERVER}/backends/filling.py",
            "        if length > free_bytes:",
            "        if False:",
            f"{FAULTS}/test_refusals.py::test_memory_is_promised_once",
        ),
        (
            "a refused seal lets the array be written to again",
            f"{SERVER}/makers.py",
            "                _restore_mode(effect.segment, self._config.segment_mode)",
            "                pass",
            f"{UNIT}/test_makers.py::test_what_is_found_wrong_at_the_seal_stays_writable",
        ),
    ),
    *_of(
        "The living keep what they have",
        (
            "a death is told by a pidfd",
            f"{SERVER}/liveness.py",
            "return [self._sessions[fd] for fd in ready if fd in self._sessions]",
            "return []",
            f"{UNIT}/test_liveness.py::test_a_death_is_seen_by_its_pidfd",
        ),
        (
            "locks are looked at every second",
            f"{SERVER}/liveness.py",
            "            found += [one for one in self._pids if self._is_over(one, now_ns)]",
            "            pass",
            f"{SYSTEM}/test_liveness.py::test_what_a_client_becomes_by_exec_has_no_session",
        ),
        (
            "a stopped process is no dead one",
            f"{SERVER}/liveness.py",
            "        if session in self._bound:\n",
            "        from hugepool_server.processes import is_stopped\n\n"
            "        if is_stopped(self._pids[session]):\n            return True\n"
            "        if session in self._bound:\n",
            f"{SYSTEM}/test_liveness.py::test_a_stopped_client_keeps_what_it_has",
        ),
        (
            "what cannot be looked at is not dead",
            f"{SERVER}/tokens.py",
            "error.strerror)\n            return None\n",
            "error.strerror)\n            return False\n",
            f"{UNIT}/test_liveness.py::test_a_lock_that_cannot_be_looked_at_ends_nothing",
        ),
        (
            "a client that does not read keeps its session",
            f"{SERVER}/session_requests.py",
            "        if session.state is not SessionState.BOUND:\n            self.end(session)",
            "        if True:\n            self.end(session)",
            f"{UNIT}/test_coordinator.py"
            "::test_an_unreachable_client_keeps_what_it_has_until_it_dies",
        ),
    ),
    *_of(
        "A child is not the client",
        (
            "the lock's holder must be the process of the connection",
            f"{SERVER}/tokens.py",
            "kind == fcntl.F_WRLCK and (holder == pid or pid == 0)",
            "kind == fcntl.F_WRLCK",
            f"{UNIT}/test_tokens.py::test_a_session_is_bound_by_its_own_process_alone",
        ),
        (
            "the lock is one that a child does not inherit",
            f"{CLIENT}/liveness.py",
            "fcntl.lockf(self._fd, ",
            "fcntl.flock(self._fd, ",
            "tests/unit/client/test_liveness.py"
            "::test_a_forked_child_neither_holds_the_lock_nor_lets_go_of_it",
        ),
        (
            "a child's copy of the pool refuses to work",
            f"{CLIENT}/channel.py",
            "        if self.inherited:\n            raise DetachedError(",
            "        if False:\n            raise DetachedError(",
            f"{SYSTEM}/test_service.py::test_a_forked_child_is_told_that_the_pool_is_not_its_own",
        ),
        (
            "a session is one process's",
            f"{SERVER}/session_requests.py",
            "if session.identity.process != identity.process:",
            "if False:",
            f"{UNIT}/test_sessions.py::test_another_process_does_not_take_a_session_up",
        ),
        (
            "a child does not get what the library is filling",
            f"{COMMON}/mapping.py",
            "                linux.advise(address, length, linux.MADV_DONTFORK)",
            "                pass",
            "tests/unit/common/test_mapping.py"
            "::test_a_child_does_not_keep_writable_what_is_not_forked",
        ),
        (
            "nor its descriptor",
            f"{COMMON}/mapping.py",
            "                    _no_fork.acquire(timeout=_FORK_PATIENCE_S)",
            "                    pass",
            "tests/unit/common/test_mapping.py"
            "::test_nobody_forks_between_the_opening_and_the_closing_of_the_descriptor",
        ),
        (
            "it finds zeros there, and no fault",
            f"{COMMON}/mapping.py",
            "        fill_gap(address, root.nbytes, root)",
            "        pass",
            "tests/unit/common/test_mapping.py"
            "::test_a_child_finds_zeros_of_its_own_and_nobody_elses_memory",
        ),
    ),
    *_of(
        "A pid that is used again is a stranger",
        (
            "a start wants the lock held",
            f"{SERVER}/tokens.py",
            "living = known and _is_held(fd, pid)",
            "living = known",
            f"{UNIT}/test_tokens.py::test_the_living_are_taken_over_and_the_dead_removed",
        ),
        (
            "a start wants the process to have begun when the session's did",
            f"{SERVER}/tokens.py",
            "return record if living and same else None",
            "return record if living else None",
            f"{UNIT}/test_tokens.py::test_a_token_that_is_not_what_it_says_is_removed",
        ),
        (
            "the pidfd is silent after the lock was seen",
            f"{SERVER}/liveness.py",
            "        if not held or self._is_dead(session):",
            "        if not held:",
            f"{UNIT}/test_liveness.py::test_a_holder_that_is_dead_but_for_its_lock_is_not_bound",
        ),
    ),
    *_of(
        "Work counts once",
        (
            "a report must name the epoch of its part",
            f"{SERVER}/parts.py",
            "(job, part, epoch) == (self.job.number, self.part.number, self.epoch)",
            "(job, part) == (self.job.number, self.part.number)",
            f"{UNIT}/test_sessions.py"
            "::test_a_worker_that_registers_at_a_new_connection_is_at_nothing",
        ),
        (
            "a part that is taken back has a new epoch",
            f"{SERVER}/jobs.py",
            "    assignment.part.epoch += 1",
            "    pass",
            f"{UNIT}/test_jobs.py"
            "::test_a_part_of_a_worker_that_goes_is_run_again_under_a_new_epoch",
        ),
        (
            "every start has an epoch of its own",
            f"{SERVER}/manifests.py",
            "msgspec.structs.replace(last, epoch=last.epoch + 1)",
            "msgspec.structs.replace(last, epoch=max(last.epoch, 1))",
            f"{SYSTEM}/test_restart.py::test_numbers_are_never_given_twice",
        ),
        (
            "rows that a stopped worker may write are given to nobody",
            f"{SERVER}/patience.py",
            "        return bool(stale.written)",
            "        return False",
            f"{UNIT}/test_job_failures.py"
            "::test_rows_that_a_stopped_worker_may_write_are_not_given_away",
        ),
        (
            "what adds to what was there is not run again",
            f"{SERVER}/jobs.py",
            "if too_many or (job.once and part.epoch > 1):",
            "if too_many:",
            f"{UNIT}/test_patience.py::test_a_part_that_adds_to_what_is_there_is_not_run_again",
        ),
        (
            "a job that nobody takes up fails",
            f"{SERVER}/patience.py",
            "now_ns - job.waiting_ns >= self.worker_ns",
            "False",
            f"{UNIT}/test_patience.py::test_a_job_that_nobody_takes_up_fails_when_patience_ends",
        ),
        (
            "a stopped worker is noticed",
            f"{SERVER}/daemon.py",
            "            self._look_at_workers()\n            self._makers",
            "            self._makers",
            f"{SYSTEM}/test_liveness.py::test_a_stopped_worker_is_noticed_and_waited_for",
        ),
    ),
    *_of(
        "A client over TCP stops before its lease ends",
        (
            "a client over TCP fences itself first",
            f"{CLIENT}/fence.py",
            "if self._lease_ns and not self._over and self.now_ns() >= self._until_ns:",
            "if False:",
            "tests/unit/client/test_fence.py"
            "::test_it_is_over_a_tenth_before_the_lease_counted_from_what_was_sent",
        ),
        (
            "the fence counts from what was sent",
            f"{CLIENT}/fence.py",
            "        until_ns = sent_ns + self._lease_ns",
            "        until_ns = self.now_ns() + self._lease_ns",
            "tests/unit/client/test_fence.py"
            "::test_a_confirmation_counts_from_when_it_was_asked_for",
        ),
        (
            "a fence that was passed stays so",
            f"{CLIENT}/fence.py",
            "if not self.over and until_ns > self._until_ns:",
            "if until_ns > self._until_ns:",
            "tests/unit/client/test_fence.py"
            "::test_a_confirmation_that_comes_too_late_changes_nothing[nobody looked]",
        ),
        (
            "what is held is not used past the fence",
            f"{CLIENT}/array.py",
            "        self._channel.check_lease()\n        if role not in",
            "        if role not in",
            f"{SYSTEM}/test_tcp.py::test_one_that_was_stopped_for_longer_is_refused_at_once",
        ),
        (
            "a thread renews while others compute",
            f"{CLIENT}/channel.py",
            "self._renewal = Renewal(self._session.fence, self.renew)",
            "self._renewal = None",
            f"{SYSTEM}/test_tcp.py::test_one_that_does_nothing_keeps_its_session",
        ),
        (
            "a lease that is not renewed ends",
            f"{SERVER}/leases.py",
            "if one.lease_end_ns <= now_ns]",
            "if False]",
            f"{UNIT}/test_tcp_sessions.py"
            "::test_a_session_that_is_not_renewed_ends_with_its_lease_and_not_before",
        ),
        (
            "the next coordinator gives one lease from its start",
            f"{SERVER}/leases.py",
            "            self.renew(session, now_ns)\n            self._by_token",
            "            self.renew(session, 0)\n            self._by_token",
            f"{UNIT}/test_tcp_sessions.py::test_a_restart_begins_its_lease_anew",
        ),
        (
            "what comes back too late opens no session",
            f"{SERVER}/session_requests.py",
            "            if request.resume and not event.identity.is_local:",
            "            if False:",
            f"{UNIT}/test_tcp_sessions.py::test_what_comes_back_too_late_opens_no_session",
        ),
        (
            "a peer over TCP is nobody locally",
            f"{SERVER}/records.py",
            "        return self.kind, self.uid, self.pid",
            '        return "", self.uid, self.pid',
            f"{UNIT}/test_tcp_sessions.py::test_no_two_are_the_same_and_none_is_anybody_here",
        ),
        (
            "it owns what its own session made",
            f"{SERVER}/records.py",
            "        return self.kind, self.uid, self.session",
            "        return self.kind, self.uid, 0",
            f"{UNIT}/test_tcp_sessions.py::test_what_others_made_is_not_its_own[a remote]",
        ),
        (
            "a connection over TCP cannot be guessed",
            f"{SERVER}/endpoint.py",
            "if identity is OVER_TCP and len(routing_id) < LEAST_ROUTING_ID:",
            "if False:",
            f"{SYSTEM}/test_tcp.py::test_who_could_be_spoken_for_is_refused",
        ),
        (
            "nothing listens where others could come from",
            f"{COMMON}/tcp_address.py",
            "    if not loopback:",
            "    if False:",
            "tests/unit/common/test_tcp_address.py"
            "::test_what_others_could_reach_is_refused_and_told_why[0.0.0.0:8378]",
        ),
    ),
    *_of(
        "Nobody reads the wall clock",
        (
            "times are of CLOCK_MONOTONIC",
            f"{SERVER}/daemon.py",
            "effects = self._core.handle(event, time.monotonic_ns())",
            "effects = self._core.handle(event, time.time_ns())",
            f"{FAULTS}/test_promises.py::test_no_decision_depends_on_the_wall_clock",
        ),
    ),
    *_of(
        "One coordinator for a directory",
        (
            "the runtime directory is locked",
            f"{SERVER}/runtime.py",
            "                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
            "                pass",
            f"{SYSTEM}/test_restart.py::test_a_second_coordinator_changes_no_file",
        ),
        (
            "what a coordinator removes there goes by the directory's descriptor",
            f"{SERVER}/runtime.py",
            "            os.unlink(socket_path(_HERE), dir_fd=self.fd)",
            "            os.unlink(self.socket)",
            f"{UNIT}/test_runtime.py"
            "::test_a_directory_that_was_moved_away_is_tidied_and_not_the_next_at_its_path",
        ),
        (
            "and so does what it writes",
            f"{SERVER}/daemon.py",
            ", dir_fd=self._runtime.fd)",
            ")",
            f"{SYSTEM}/test_moved.py"
            "::test_a_coordinator_whose_directory_was_moved_leaves_the_next_ones_records_alone",
        ),
        (
            "segment directories are locked",
            f"{SERVER}/remains.py",
            "        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
            "        pass",
            f"{UNIT}/test_reclaim.py::test_a_sweep_leaves_the_living_alone",
        ),
        (
            "nobody sweeps what the next coordinator will come for",
            f"{SERVER}/remains.py",
            "        if (record.store, record.boot_id) == (store, boot):",
            "        if False:",
            f"{SYSTEM}/test_restart.py::test_an_embedded_coordinator_leaves_a_dead_service_alone",
        ),
        (
            "nor where only manifests are left to tell",
            f"{SERVER}/remains.py",
            "record = read_coordinator(owner) or remembered(owner, boot)",
            "record = read_coordinator(owner)\n        if record is None:\n            continue",
            f"{UNIT}/test_reclaim.py::test_manifests_alone_tell_that_somebody_will_come",
        ),
    ),
    *_of(
        "A restart loses nothing",
        (
            "a start takes over what it finds",
            f"{SERVER}/daemon.py",
            "        if found.arrays or found.sessions:\n            self._handle(found)",
            "        pass",
            f"{SYSTEM}/test_restart.py"
            "::test_what_is_sealed_is_there_again_and_readers_notice_nothing",
        ),
        (
            "a client goes on with the next coordinator",
            f"{CLIENT}/succession.py",
            "            while not (durable and self._taken_up()):",
            "            while not (durable and False):",
            f"{SYSTEM}/test_restart.py::test_leases_go_on_under_their_numbers",
        ),
        (
            "a client tells what it holds",
            f"{CLIENT}/session.py",
            "        for page in holdings.pages():",
            "        for page in list(holdings.pages())[:0]:",
            f"{SYSTEM}/test_restart.py::test_leases_go_on_under_their_numbers",
        ),
        (
            "what has no memory any more is told as lost",
            f"{SERVER}/recovery.py",
            '            lost[record.segment.segment_id] = f"{record.spec.name}: {loss}"',
            "            pass",
            f"{SYSTEM}/test_restart.py::test_a_file_removed_from_outside_is_an_array_lost",
        ),
        (
            "the segment of a damaged manifest is kept",
            f"{SERVER}/recovery.py",
            "        if segment_id in found.quarantined:",
            "        if False:",
            f"{SYSTEM}/test_restart.py"
            "::test_a_record_that_was_damaged_is_put_away_with_its_segment_kept",
        ),
        (
            "what cannot be looked at is not lost: the start is refused",
            f"{SERVER}/recovery.py",
            "        raise NotPermittedError(\n"
            '            f"a segment cannot be looked at: {error.strerror}", '
            "where=segment.path\n        ) from error",
            '        raise _Lost("it cannot be looked at") from None',
            f"{UNIT}/test_recovery.py::test_what_cannot_be_looked_at_is_not_lost",
        ),
        (
            "what may be held by a client that has not come back stays",
            f"{SERVER}/state.py",
            "return self.registry.is_inherited(found) and bool(self.leases.resuming)",
            "return False",
            f"{UNIT}/test_adoption.py::test_a_superseded_generation_stays_for_who_resumes_it",
        ),
        (
            "a seal that was killed is undone",
            f"{SERVER}/recovery.py",
            "        os.chmod(path, mode)",
            "        pass",
            f"{UNIT}/test_recovery.py::test_a_seal_that_was_killed_is_undone",
        ),
        (
            "records of another boot are of memory that is gone",
            f"{SERVER}/manifests.py",
            "                if record.boot_id == boot:",
            "                if True:",
            f"{SYSTEM}/test_restart.py::test_after_a_reboot_the_start_is_clean[another boot]",
        ),
        (
            "a job under way is told as interrupted, and not run twice",
            f"{CLIENT}/reunion.py",
            "    if not isinstance(request, SubmitJob):",
            "    if True:",
            f"{SYSTEM}/test_restart.py::test_a_job_is_interrupted_and_can_be_submitted_again",
        ),
        (
            "numbers of a coordinator that is no more destroy nothing of another",
            f"{CLIENT}/ledger.py",
            "                    if first.claim.era == self.holdings.era:",
            "                    if True:",
            f"{SYSTEM}/test_restart.py"
            "::test_numbers_of_a_coordinator_that_is_no_more_destroy_nothing_of_another"
            "[with its handle]",
        ),
        (
            "a fault of the coordinator leaves everything to the next one",
            f"{SERVER}/daemon.py",
            "        self._keep = config.durable\n",
            "        self._keep = False\n",
            f"{SYSTEM}/test_restart.py::test_a_start_that_fails_loses_nothing",
        ),
        (
            "manifests that are removed while it serves are missed while all can be saved",
            f"{SERVER}/whereabouts.py",
            "        if not _is_so(lambda: self._manifests.is_there):",
            "        if False:",
            f"{SYSTEM}/test_moved.py::test_manifests_that_were_removed_are_missed_at_once",
        ),
        (
            "a segment directory that was removed is made anew",
            f"{SERVER}/reclaim.py",
            "            elif not is_still(opened[1], opened[0]):",
            "            elif False:",
            f"{SYSTEM}/test_moved.py"
            "::test_a_segment_directory_that_was_removed_is_made_anew_and_its_arrays_are_told",
        ),
    ),
    *_of(
        "Readers see whole generations",
        (
            "a generation is a segment of its own",
            f"{CLIENT}/store.py",
            "        made = self.put(temporary, value, **policy)\n",
            "        made = self.put(temporary, value, **policy)\n"
            "        import os\n"
            "        fd = os.open(self.describe(name).array.segment.path, os.O_RDWR)\n"
            "        os.pwrite(fd, value.tobytes(), 0)\n"
            "        os.close(fd)\n",
            f"{FAULTS}/test_torn_reads.py::test_no_read_is_torn[512]",
        ),
        (
            "a generation stays while it is read",
            f"{SERVER}/array_requests.py",
            "            readers = state.leases.asked(found.segment_id)",
            "            readers: list[object] = []",
            f"{UNIT}/test_generations.py::test_readers_keep_the_generation_that_they_have",
        ),
        (
            "nothing is sealed that somebody could still write",
            f"{SERVER}/backends/select.py",
            "            _refuse_writers(fd, segment.path)",
            "            pass",
            "tests/conformance/test_backends.py::test_sealing_waits_for_every_writer[shm-4k]",
        ),
        (
            "sealing makes leases read-only",
            f"{SERVER}/array_requests.py",
            "        self._state.leases.make_readonly(act.subject.segment_id)",
            "        pass",
            f"{UNIT}/test_coordinator.py::test_seal_makes_own_leases_read_only",
        ),
        (
            "verify compares the bytes with the checksum of the seal",
            f"{CLIENT}/leased_file.py",
            "        if info.checksum and found != info.checksum:",
            "        if False:",
            f"{SYSTEM}/test_verify.py::test_one_flipped_bit_is_found",
        ),
        (
            "declared rows are one writer's",
            f"{SERVER}/leases.py",
            "            if lease.rows[0] < rows[1] and rows[0] < lease.rows[1]:",
            "            if False:",
            f"{SYSTEM}/test_generations.py::test_writers_of_disjoint_rows",
        ),
    ),
    *_of(
        "Nobody delays the coordinator",
        (
            "it sends without waiting",
            f"{SERVER}/endpoint.py",
            "self._routers[peer[:1]].send_multipart([peer[1:], *frames], zmq.NOBLOCK)",
            "self._routers[peer[:1]].send_multipart([peer[1:], *frames])",
            f"{SYSTEM}/test_liveness.py::test_a_peer_that_never_reads_delays_nobody",
        ),
        (
            "what is queued for one client is bounded",
            f"{SERVER}/endpoint.py",
            "        router.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)",
            "        router.setsockopt(zmq.SNDHWM, 0)",
            f"{SYSTEM}/test_liveness.py::test_a_peer_that_never_reads_delays_nobody",
        ),
        (
            "arrays are populated on threads",
            f"{SERVER}/makers.py",
            "        if _begin(pool, self._make, making, [*self._removals]) is None:",
            "        if self._make(making, [*self._removals]) is not None:",
            f"{SYSTEM}/test_service.py::test_others_are_served_while_pages_are_made",
        ),
        (
            "a seal that waits for a writer holds no thread",
            f"{SERVER}/makers.py",
            "            self._aside.put(",
            "            self._stopping.wait()\n            self._aside.put(",
            f"{UNIT}/test_makers.py::test_seals_that_wait_for_writers_keep_no_other_waiting",
        ),
        (
            "small seals do not wait for large ones",
            f"{SERVER}/makers.py",
            "        small = effect.spec.nbytes < SMALL_BYTES  # a large one",
            "        small = True  # a large one",
            f"{UNIT}/test_makers.py::test_large_seals_keep_no_small_one_waiting",
        ),
    ),
    *_of(
        "A snapshot is the old or the new one",
        (
            "every file is synced",
            f"{CLIENT}/snapshot_directory.py",
            "            yield fd\n            os.fsync(fd)",
            "            yield fd",
            "tests/unit/client/test_snapshot_directory.py"
            "::test_a_power_failure_leaves_the_old_or_the_new",
        ),
        (
            "its directory is synced before CURRENT names it",
            f"{CLIENT}/snapshot_directory.py",
            "            os.fsync(self._fd)\n            os.fsync(self._parent_fd)  # it has",
            "            os.fsync(self._parent_fd)  # it has",
            "tests/unit/client/test_snapshot_directory.py"
            "::test_a_power_failure_leaves_the_old_or_the_new",
        ),
        (
            "CURRENT is replaced by a rename that is synced",
            f"{CLIENT}/snapshot_directory.py",
            "            os.fsync(self._parent_fd)\n            self.committed = True",
            "            self.committed = True",
            "tests/unit/client/test_snapshot_directory.py"
            "::test_a_power_failure_leaves_the_old_or_the_new",
        ),
        (
            "checksums are compared when it is read",
            f"{CLIENT}/snapshot.py",
            "    if found != saved.checksum:",
            "    if False:",
            f"{SYSTEM}/test_snapshot.py::test_damaged_files_are_not_restored",
        ),
        (
            "one that has what is lost now is not replaced",
            f"{CLIENT}/snapshot.py",
            "    if only := sorted(unreadable.keys() & there):",
            "    if only := list[str]():",
            f"{SYSTEM}/test_snapshot.py::test_the_only_copy_of_what_is_lost_stays",
        ),
        (
            "one of something is not replaced by one of nothing",
            f"{CLIENT}/snapshot.py",
            "    if there and not found.files:",
            "    if False:",
            f"{SYSTEM}/test_snapshot.py::test_a_snapshot_of_nothing_takes_the_place_of_none",
        ),
    ),
    *_of(
        "A restore is all or nothing",
        (
            "names are given in one step",
            f"{SERVER}/publication_requests.py",
            "first.fellows = tuple(others)",
            "first.fellows = ()",
            f"{UNIT}/test_publications.py::test_all_names_change_in_one_step",
        ),
        (
            "a step that was cut short is ended by the next start",
            f"{SERVER}/manifests.py",
            "finished = finish_renames(dir_fd)",
            "finished = 0",
            f"{UNIT}/test_manifests.py::test_of_several_that_were_being_renamed_all_are_at_the"
            "_next_start_or_none[rename]",
        ),
        (
            "what has no name yet goes with its client",
            f"{CLIENT}/snapshot.py",
            'policy["temporary"] = True',
            'policy["temporary"] = False',
            f"{SYSTEM}/test_restore.py::test_who_is_killed_at_it_leaves_nothing",
        ),
        (
            "what failed is destroyed by its segment",
            f"{SERVER}/array_requests.py",
            "if request.segment_id not in (0, found.segment_id):",
            "if False:",
            f"{UNIT}/test_publications.py::test_only_the_segment_that_is_meant_is_destroyed",
        ),
    ),
    *_of(
        "Unknown words are answered",
        (
            "another version is refused",
            f"{COMMON}/wire.py",
            "    if version[0] != VERSION:",
            "    if False:",
            f"{FAULTS}/test_promises.py"
            "::test_what_is_unknown_is_a_typed_error_and_the_session_goes_on[version]",
        ),
        (
            "an unknown field is refused",
            f"{COMMON}/messages.py",
            'forbid_unknown_fields=True, tag_field="m"',
            'tag_field="m"',
            f"{FAULTS}/test_promises.py"
            "::test_what_is_unknown_is_a_typed_error_and_the_session_goes_on[field]",
        ),
        (
            "what cannot be read is answered, and the connection goes on",
            f"{SERVER}/endpoint.py",
            "                self.refuse(peer, answerable, error)",
            "                pass",
            f"{FAULTS}/test_promises.py"
            "::test_what_is_unknown_is_a_typed_error_and_the_session_goes_on[number]",
        ),
        (
            "a key that comes twice is refused",
            f"{COMMON}/wire.py",
            "    if len(found) != len(pairs):",
            "    if False:",
            "tests/unit/common/test_wire.py"
            "::test_a_key_that_comes_twice_is_refused_also_where_the_rest_is_right",
        ),
    ),
    *_of(
        "It ends when it is told to",
        (
            "a signal is an event of the loop",
            f"{SERVER}/daemon.py",
            "                    self._on_signal(name)",
            "                    pass",
            f"{SYSTEM}/test_service.py::test_sigterm_leaves_no_file",
        ),
        (
            "new work is refused",
            f"{SERVER}/coordinator.py",
            "if self._state.stopping and isinstance(event.request, _NEW_WORK):",
            "if False:",
            f"{UNIT}/test_coordinator.py::test_a_draining_coordinator_refuses_new_work",
        ),
        (
            "what is under way is given up in time",
            f"{SERVER}/daemon.py",
            "        if not self._core.stopping:\n            return None\n",
            "        return None\n",
            f"{SYSTEM}/test_liveness.py::test_it_ends_in_order_whatever_is_under_way[sealing]",
        ),
        (
            "a second signal ends it at once",
            f"{SERVER}/signals.py",
            "        elif now_ns - self._asked_ns > SAME_GESTURE_NS:",
            "        elif False:",
            f"{SYSTEM}/test_liveness.py"
            "::test_a_second_signal_ends_it_at_once_and_the_next_one_finds_all",
        ),
        (
            "SIGHUP leaves all to the next",
            f"{SERVER}/daemon.py",
            "        if name == signal.SIGHUP.name and self._config.durable:",
            "        if False:",
            f"{SYSTEM}/test_service.py::test_a_hangup_loses_nothing_and_is_told",
        ),
        (
            "what whoever started it had ignored stays ignored",
            f"{SERVER}/signals.py",
            "            if number not in spared or signal.getsignal(number) is not signal.SIG_IGN",
            "            if True",
            f"{SYSTEM}/test_service.py"
            "::test_a_signal_that_was_ignored_at_the_start_stays_ignored[1]",
        ),
        (
            "an end in order removes the segments",
            f"{SERVER}/daemon.py",
            "self._directories.close(keep=self._keep, spared=self._in_quarantine())",
            "self._directories.close(keep=True)",
            f"{SYSTEM}/test_service.py::test_sigterm_leaves_no_file",
        ),
        (
            "a private coordinator ends with its parent",
            f"{SERVER}/daemon.py",
            '                self._stop("the parent process ended")',
            "                pass",
            f"{SYSTEM}/test_service.py"
            "::test_an_embedded_coordinator_ends_with_its_parent_however_that_ends",
        ),
    ),
)
