/*
 * state.h -- the state folder: one process at a time, and where things are in it.
 *
 * Public because the application takes the lock and the commands ask who has it.
 */
#ifndef CHUTE_STATE_H
#define CHUTE_STATE_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

/*
 * Make DIR (0700, with its parents) if it is missing and take its lock. *RET_FD holds it until closed; it goes with
 * the process, also with a killed one. ERR_CONFIG: another process has it, and which one; ERR_SYSTEM.
 */
enum err_code state_lock(const char *dir, int *ret_fd, struct err *err);

/* The random name of this chute, kept in DIR/instance: 32 hex digits. The lock is held. */
enum err_code state_instance(const char *dir, char ret[33], struct err *err);

/*
 * The address of DIR/chute.sock. Folders longer than a socket address holds are reached through a descriptor:
 * *RET_FD is to be closed after bind or connect (-1: none needed).
 */
enum err_code state_socket(const char *dir, struct sockaddr_un *ret, int *ret_fd, struct err *err);

#endif
