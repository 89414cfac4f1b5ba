/*
 * vsock connect PORT        connect to the host; stdin goes there, what comes goes to stdout
 * vsock echo PORT COUNT     accept COUNT connections, one after the other, and send all back
 *
 * The end of the input is passed on (shutdown(2)), and the program ends with the other side's.
 */

#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static char buffer[64 * 1024];

static void copy(int from, int to)
{
    ssize_t length;

    while ((length = read(from, buffer, sizeof(buffer))) > 0)
        for (ssize_t done = 0, n; done < length; done += n)
            if ((n = write(to, buffer + done, length - done)) < 0)
                err(1, "write");
    if (length < 0)
        err(1, "read");
}

static struct sockaddr_vm address(unsigned cid, const char *port)
{
    return (struct sockaddr_vm){
        .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = strtoul(port, NULL, 0)};
}

static int talk(int connection, const char *port)
{
    struct sockaddr_vm host = address(VMADDR_CID_HOST, port);
    int status;
    pid_t sender;

    if (connect(connection, (struct sockaddr *)&host, sizeof(host)) < 0)
        err(1, "connect");
    sender = fork();
    if (sender == 0) {
        copy(STDIN_FILENO, connection);
        shutdown(connection, SHUT_WR);
        exit(0);
    }
    copy(connection, STDOUT_FILENO);
    waitpid(sender, &status, 0);
    return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static int echo(int listener, const char *port, int count)
{
    struct sockaddr_vm any = address(VMADDR_CID_ANY, port);

    if (bind(listener, (struct sockaddr *)&any, sizeof(any)) < 0 || listen(listener, 8) < 0)
        err(1, "listen");
    while (count--) {
        int connection = accept(listener, NULL, NULL);

        if (connection < 0)
            err(1, "accept");
        copy(connection, connection);
        close(connection);
    }
    return 0;
}

int main(int argc, char **argv)
{
    int vsock = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (vsock < 0)
        err(1, "socket");
    if (argc == 3 && strcmp(argv[1], "connect") == 0)
        return talk(vsock, argv[2]);
    if (argc == 4 && strcmp(argv[1], "echo") == 0)
        return echo(vsock, argv[2], atoi(argv[3]));
    errx(2, "usage: vsock connect PORT | vsock echo PORT COUNT");
}
